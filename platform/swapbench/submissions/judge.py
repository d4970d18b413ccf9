"""Starts judging: reuses the verdicts of the same code, or queues attempts. Nothing runs that still lacks its approval."""

from django.utils import timezone

from swapbench.submissions import attempts, reuse
from swapbench.submissions.models import Approval, Submission


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


def may_run(submission: Submission) -> bool:
    """Whether its code may be run: nobody has to approve it, or a maintainer approved this SHA."""
    given = submission.approvals.filter(purpose=Approval.Purpose.JUDGE, head_sha=submission.head_sha)
    return not submission.approval_needed or given.exists()


def wait_again(submission: Submission, before: str) -> bool:
    """Sets a submission that ended before it was approved back to waiting. False where it is not in state `before`."""
    waits = Submission.objects.filter(pk=submission.pk, state=before).update(state=Submission.State.WAITING)
    submission.refresh_from_db(fields=["state"])
    return bool(waits)
