"""One contributor: what they submitted, what came of it, where they stand."""

from dataclasses import dataclass

from django.db.models import Prefetch

from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import PullRequest, Submission, Verdict
from swapbench.web import tracks
from swapbench.web.tracks import Entry, TrackShown


@dataclass(frozen=True)
class Place:
    """An entry of the person on a track."""

    track: TrackShown
    entry: Entry


@dataclass(frozen=True)
class Person:
    name: str
    pulls: int
    judged: int
    passed: int
    merged: int
    places: list[Place]
    submissions: list[Submission]


def person(name: str) -> Person | None:
    """The person by the name that the forge gives; None where no pull request has it."""
    pulls = PullRequest.objects.filter(author=name)
    if not pulls.exists():
        return None
    own = Submission.objects.filter(pull_request__author=name)
    current = Verdict.objects.filter(current=True).defer("cases", "tests", "quality", "figures").order_by("path")
    latest = own.select_related("pull_request").prefetch_related(
        Prefetch("verdicts", queryset=current, to_attr="current_verdicts")
    )
    return Person(
        name,
        pulls.count(),
        own.filter(state=Submission.State.JUDGED).count(),
        own.filter(verdicts__current=True, verdicts__status=Verdict.Status.PASSED).distinct().count(),
        QueueEntry.objects.filter(submission__in=own, state=QueueEntry.State.MERGED).count(),
        [
            Place(track, entry)
            for group in tracks.groups()
            for track in group.tracks
            for entry in track.entries
            if entry.verdict.submission.author == name
        ],
        list(latest.order_by("-id")[:50]),
    )
