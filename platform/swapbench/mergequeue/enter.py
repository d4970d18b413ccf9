"""Puts into the queue what qualifies, by itself."""

from collections import defaultdict

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from swapbench.mergequeue.events import say
from swapbench.mergequeue.models import BranchState, QueueEntry
from swapbench.submissions.models import PullRequest, Submission, Verdict
from swapbench.submissions.verdicts import submission_qualifies

ADAPTERS_FIRST = 10


def enter(branch: BranchState) -> int:
    """Adds an entry for every judged submission that qualifies and is not queued; returns how many entered."""
    judged = Submission.objects.filter(
        state=Submission.State.JUDGED,
        pull_request__forge=branch.forge,
        pull_request__base_ref=branch.name,
        pull_request__state=PullRequest.State.OPEN,
        pull_request__head_sha=F("head_sha"),
        verdicts__qualifies=True,
        verdicts__current=True,
    ).filter(
        Q(queue_entry__isnull=True)
        | Q(queue_entry__state=QueueEntry.State.LEFT, queue_entry__ended_at__lt=F("judged_at"))
    )
    return sum(_enter(branch, submission) for submission in judged.distinct().order_by("judged_at", "id"))


def newest_verdicts(submission: Submission) -> list[Verdict]:
    """The verdict that counts for each file and machine class: the newest, whatever the suite version."""
    newest: dict[tuple[str, str], Verdict] = {}
    for verdict in submission.verdicts.filter(current=True).order_by("id"):
        newest[verdict.path, verdict.machine_class] = verdict
    return list(newest.values())


def qualified(submission: Submission) -> bool:
    """Whether all of a submission's implementations are good enough."""
    verdicts = [(row.path, row.status, row.speed, row.qualifies) for row in newest_verdicts(submission)]
    return submission_qualifies(verdicts, [file["path"] for file in submission.files])


def waiting_again() -> dict[str, object]:
    """The fields of an entry that comes back to the queue."""
    return {
        "state": QueueEntry.State.WAITING,
        "sentence": "It waits for its turn.",
        "ended_at": None,
        "entered_at": timezone.now(),
        "alone": False,
    }


def _enter(branch: BranchState, submission: Submission) -> bool:
    if not qualified(submission):
        return False
    kinds: defaultdict[str, int] = defaultdict(int, adapter=ADAPTERS_FIRST)
    with transaction.atomic():
        entry, made = QueueEntry.objects.get_or_create(
            submission=submission,
            defaults={
                "branch": branch,
                "head_sha": submission.head_sha,
                "priority": max(kinds[file["kind"]] for file in submission.files),
                "sentence": "It waits for its turn.",
            },
        )
        if not made:
            # It had left, was judged again since, and qualifies: it queues up anew, at the end.
            made = bool(
                QueueEntry.objects.filter(
                    pk=entry.pk, state=QueueEntry.State.LEFT, ended_at__lt=submission.judged_at
                ).update(**waiting_again())
            )
        if made:
            say(branch, "entered", f"{submission.pull_request} entered the queue.", entry)
    return made
