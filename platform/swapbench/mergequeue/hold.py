"""What a maintainer may do with the queue: hold it, let it go on, put an entry back, take one out."""

from django.db import transaction
from django.utils import timezone

from swapbench.mergequeue.enter import qualified, waiting_again
from swapbench.mergequeue.events import say
from swapbench.mergequeue.models import BranchState, QueueEntry
from swapbench.submissions import audit
from swapbench.submissions.refusal import NotPossible


def hold(branch: BranchState, by: str, why: str) -> None:
    """Nothing is merged any more until `release`; builds under way go on, but are not merged."""
    with transaction.atomic():
        if BranchState.objects.filter(pk=branch.pk, held=False).update(
            held=True, held_by=by[:120], hold_reason=why[:500]
        ):
            sentence = f"{by} holds {branch.name}: {why or 'no reason given'}"
            say(branch, "held", sentence)
            audit.note(by, "held", sentence)


def release(branch: BranchState, by: str) -> None:
    """The queue goes on."""
    with transaction.atomic():
        if BranchState.objects.filter(pk=branch.pk, held=True).update(held=False, held_by="", hold_reason=""):
            say(branch, "released", f"{by} let {branch.name} go on.")
            audit.note(by, "released", f"{by} let {branch.name} go on.")


def put_back(entry: QueueEntry, by: str) -> None:
    """An entry that left queues up again. Raises NotPossible where it may not be merged."""
    submission = entry.submission
    if submission.pull_request.head_sha != entry.head_sha or not qualified(submission):
        raise NotPossible("Its head has moved on, or its verdicts do not qualify; only what qualified can be put back.")
    with transaction.atomic():
        back = QueueEntry.objects.filter(pk=entry.pk, state=QueueEntry.State.LEFT).update(**waiting_again())
        if not back:
            raise NotPossible(f"It has not left the queue: it is {entry.get_state_display()}.")
        say(entry.branch, "entered", f"{by} put {submission.pull_request} back into the queue.", entry)
        audit.note(by, "put back", f"{by} put {submission.pull_request} back into the queue.", submission)


def take_out(entry: QueueEntry, by: str, why: str) -> None:
    """A waiting entry leaves. Raises NotPossible where it is being tested, or has ended."""
    with transaction.atomic():
        sentence = f"{by} took it out: {why or 'no reason given'}"
        out = QueueEntry.objects.filter(pk=entry.pk, state=QueueEntry.State.WAITING).update(
            state=QueueEntry.State.LEFT, sentence=sentence, ended_at=timezone.now()
        )
        if not out:
            raise NotPossible(f"Only an entry that waits can be taken out; this one is {entry.get_state_display()}.")
        say(entry.branch, "left", f"{entry.submission.pull_request} left the queue: {sentence}", entry)
        audit.note(by, "taken out", f"{by} took {entry.submission.pull_request} out of the queue.", entry.submission)
