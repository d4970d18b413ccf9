"""How many tries an author has had on a track, and how much alpha is left for the next (DESIGN section 5, "Until lucky")."""

from django.db.models import Q

from swapbench.submissions.models import Attempt, Submission, Verdict
from swapbench.submissions.policy import policy
from workers.statistics import alpha_for_try

MEASURED_IN = ("performance", "report")
"""Stages by which an attempt has begun to measure the speed."""


def number(submission: Submission, machine_class: str) -> int:
    """Which try this is of its author on the tracks that it touches, from 1; the largest where it touches several.

    A try is an attempt that measured the speed, also one that its author stopped while it did, by a push or a command:
    whoever watches the pairs could else stop what does not look lucky. A verdict that was reused is none.
    """
    most = 0
    stopped = _stopped(submission, machine_class)
    for file in submission.files:
        track = Q(kind=file["kind"], quality_class=file["quality_class"], machine_class=machine_class)
        measured = (
            Verdict.objects.filter(track, submission__pull_request__forge=submission.pull_request.forge)
            .filter(submission__pull_request__author=submission.author, reused_from__isnull=True)
            .exclude(speed=Verdict.Speed.NOT_MEASURED)
        )
        same = [files for files in stopped if (file["kind"], file["quality_class"]) in files]
        most = max(most, measured.values("attempt").distinct().count() + len(same))
    return most + 1


def _stopped(submission: Submission, machine_class: str) -> list[set[tuple[str, str]]]:
    """Of each attempt of the author's that was called off while it measured: the kinds and classes of its files."""
    attempts = Attempt.objects.filter(
        state=Attempt.State.CANCELLED,
        stage__in=MEASURED_IN,
        machine_class=machine_class,
        submission__pull_request__forge=submission.pull_request.forge,
        submission__pull_request__author=submission.author,
    )
    return [
        {(file["kind"], file["quality_class"]) for file in files}
        for files in attempts.values_list("submission__files", flat=True)
    ]


def alpha(try_number: int) -> float:
    """The level that a try may use; a positive number however many came before."""
    return max(1e-6, alpha_for_try(policy().alpha, try_number))
