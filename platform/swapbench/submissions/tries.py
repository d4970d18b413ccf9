"""How many tries an author has had on a track, and how much alpha is left for the next (DESIGN section 5, "Until lucky")."""

from django.db.models import Q

from swapbench.submissions.models import Submission, Verdict
from swapbench.submissions.policy import policy
from workers.statistics import alpha_for_try


def number(submission: Submission, machine_class: str) -> int:
    """Which try this is of its author on the tracks that it touches, from 1; the largest where it touches several.

    A try is a submission whose speed was measured, and not reused from the same code.
    """
    most = 0
    for file in submission.files:
        track = Q(kind=file["kind"], quality_class=file["quality_class"], machine_class=machine_class)
        measured = (
            Verdict.objects.filter(track, submission__pull_request__forge=submission.pull_request.forge)
            .filter(submission__pull_request__author=submission.author, reused_from__isnull=True)
            .exclude(speed=Verdict.Speed.NOT_MEASURED)
        )
        most = max(most, measured.values("attempt").distinct().count())
    return most + 1


def alpha(try_number: int) -> float:
    """The level that a try may use; a positive number however many came before."""
    return max(1e-6, alpha_for_try(policy().alpha, try_number))
