"""A maintainer's yes, bound to a SHA."""

from django.db import transaction

from swapbench.submissions import audit, judge
from swapbench.submissions.models import Approval, Submission
from swapbench.submissions.refusal import NotPossible


def approve_judging(submission: Submission, by: str, head_sha: str) -> None:
    """Lets a waiting submission be judged. Raises NotPossible with a sentence where it cannot be."""
    _same_head(submission, head_sha)
    if not submission.files:
        raise NotPossible("It changes no slot file, so there is nothing to judge. Review it, and merge it by hand.")
    with transaction.atomic():
        _add(submission, Approval.Purpose.JUDGE, by)
        if not judge.begin(submission, Submission.State.WAITING):
            raise NotPossible(f"It is not waiting for approval: it is {submission.get_state_display()}.")
        audit.note(by, "approved", f"{by} let {submission.head_sha[:12]} be judged.", submission)


def approve_merging(submission: Submission, by: str, head_sha: str) -> None:
    """Lets the queue merge a submission. Raises NotPossible where the approval is for another SHA, or for one's own."""
    _same_head(submission, head_sha)
    if submission.author == by:
        raise NotPossible("Nobody approves their own pull request for merging; ask another maintainer.")
    with transaction.atomic():
        if _add(submission, Approval.Purpose.MERGE, by):
            audit.note(by, "approved", f"{by} let {submission.head_sha[:12]} be merged.", submission)


def _same_head(submission: Submission, head_sha: str) -> None:
    newest = submission.pull_request.head_sha
    if submission.head_sha != head_sha or newest != head_sha:
        raise NotPossible(f"The pull request is now at {newest[:12]}; look at that, and approve it instead.")


def _add(submission: Submission, purpose: str, by: str) -> bool:
    _, new = Approval.objects.get_or_create(
        submission=submission, head_sha=submission.head_sha, purpose=purpose, by=by[:120]
    )
    return new
