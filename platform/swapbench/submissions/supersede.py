"""Calls off what is no longer wanted: older heads of a pull request, and what a person cancels."""

from django.db import transaction
from django.utils import timezone

from swapbench.submissions import audit
from swapbench.submissions.models import Attempt, PullRequest, Submission

OPEN = (Submission.State.WAITING, Submission.State.JUDGING)


def supersede(pull_request: PullRequest, head_sha: str) -> int:
    """Ends the submissions of other heads of the pull request; returns how many. Verdicts that are given stay."""
    older = Submission.objects.filter(pull_request=pull_request, state__in=OPEN).exclude(head_sha=head_sha)
    ended = 0
    for submission in older:
        sentence = f"A newer push, {head_sha[:12]}, took the place of {submission.head_sha[:12]}."
        ended += _end(submission, Submission.State.SUPERSEDED, Attempt.Failure.SUPERSEDED, audit.PLATFORM, sentence)
    return ended


def cancel(submission: Submission, by: str, why: str) -> bool:
    """Calls a submission off. False where it has ended already."""
    return _end(submission, Submission.State.CANCELLED, Attempt.Failure.CANCELLED, by, why)


def _end(submission: Submission, state: str, kind: str, actor: str, sentence: str) -> bool:
    with transaction.atomic():
        ended = Submission.objects.filter(pk=submission.pk, state__in=OPEN).update(state=state)
        if not ended:
            return False
        Attempt.objects.filter(submission=submission, state__in=Attempt.LIVE).update(
            state=Attempt.State.CANCELLED, failure_kind=kind, failure=sentence, finished_at=timezone.now()
        )
        audit.note(actor, state, sentence, submission)
    return True
