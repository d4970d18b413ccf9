"""Judges a submission once more, because a person asks for it."""

from django.db import transaction

from swapbench.submissions import attempts, audit, judge
from swapbench.submissions.models import Submission, Verdict
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.verdicts import OURS


def retry(submission: Submission, by: str, may_maintain: bool) -> None:
    """Queues a new round of attempts. Raises NotPossible with a sentence where that cannot be.

    The author may retry what was our fault or remained undecided; only a maintainer may have a decided verdict drawn again.
    What was cancelled before a maintainer approved it waits for the approval again.
    """
    if submission.head_sha != submission.pull_request.head_sha:
        raise NotPossible(f"The pull request is now at {submission.pull_request.head_sha[:12]}; retry that.")
    undecided = [*OURS, Verdict.Status.INCONCLUSIVE]
    current = submission.verdicts.filter(current=True)
    decided = current.exclude(status__in=undecided).exclude(speed=Verdict.Speed.INCONCLUSIVE).exists()
    if decided and not may_maintain:
        raise NotPossible("It has a verdict. Push a change to be judged anew, or ask a maintainer to retry it.")
    with transaction.atomic():
        if not judge.may_run(submission) and judge.wait_again(submission, Submission.State.CANCELLED):
            sentence = f"{by} asked for it again; {submission.head_sha[:12]} waits for a maintainer's approval."
            audit.note(by, "retried", sentence, submission)
            return
        begun = Submission.objects.filter(
            pk=submission.pk, state__in=[Submission.State.JUDGED, Submission.State.CANCELLED]
        ).update(state=Submission.State.JUDGING, judged_at=None)
        if not begun:
            submission.refresh_from_db(fields=["state"])
            raise NotPossible(f"It cannot be retried while it is {submission.get_state_display()}.")
        submission.state = Submission.State.JUDGING
        attempts.start(submission)
        audit.note(by, "retried", f"{by} asked for another attempt at {submission.head_sha[:12]}.", submission)
