"""Writes down what happens in the queue."""

from swapbench.mergequeue.models import BranchState, Build, QueueEntry, QueueEvent


def say(
    branch: BranchState, kind: str, sentence: str, entry: QueueEntry | None = None, build: Build | None = None
) -> None:
    """Adds a QueueEvent; inside the caller's transaction."""
    QueueEvent.objects.create(branch=branch, kind=kind, sentence=sentence, entry=entry, build=build)
