"""Starts judging: reuses the verdicts of the same code, or queues attempts."""

from django.utils import timezone

from swapbench.submissions import attempts, reuse
from swapbench.submissions.models import Submission


def begin(submission: Submission, before: str) -> bool:
    """Sets the submission from state `before` to judging. False where it is in another state.

    Called inside a transaction.
    """
    begun = Submission.objects.filter(pk=submission.pk, state=before).update(
        state=Submission.State.JUDGING, judged_at=None
    )
    if not begun:
        submission.refresh_from_db(fields=["state"])
        return False
    submission.state = Submission.State.JUDGING
    if reuse.reuse(submission):
        Submission.objects.filter(pk=submission.pk).update(state=Submission.State.JUDGED, judged_at=timezone.now())
        submission.state = Submission.State.JUDGED
        return True
    attempts.start(submission)
    return True
