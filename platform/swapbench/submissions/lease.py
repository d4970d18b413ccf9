"""What workers say while an attempt runs: started, alive, how far. All of it may come late, twice or never."""

from datetime import timedelta

from django.utils import timezone

from swapbench.submissions.attempts import seconds
from swapbench.submissions.models import Attempt, Worker
from swapbench.submissions.policy import policy
from swapbench.submissions.text import clean
from workers.protocol import Progress, WorkerSeen


def find(attempt: str) -> int | None:
    """The row's key that `attempt` names; None where it names none."""
    return int(attempt) if attempt.isascii() and attempt.isdecimal() and len(attempt) <= 18 else None


def started(attempt: str, token: str, worker: str) -> bool:
    """A worker took the attempt. False where it is not waiting for one: another took it, or it was called off."""
    waiting = Attempt.objects.filter(pk=find(attempt), token=token, state=Attempt.State.QUEUED)
    row = waiting.select_related("submission").first()
    if row is None:
        return False
    now = timezone.now()
    taken = waiting.update(
        state=Attempt.State.RUNNING,
        worker=clean(worker)[:120],
        started_at=now,
        heartbeat_at=now,
        lease_until=now + timedelta(seconds=policy().lease_seconds),
        deadline_at=now + timedelta(seconds=seconds(row)),
    )
    return bool(taken)


def heartbeat(attempt: str, token: str, worker: str) -> bool:
    """Renews the lease. False where the attempt is no longer this worker's."""
    if started(attempt, token, worker):
        return True  # The message that it had started was lost, or is still on its way.
    now = timezone.now()
    renewed = Attempt.objects.filter(
        pk=find(attempt), token=token, worker=clean(worker)[:120], state=Attempt.State.RUNNING
    ).update(heartbeat_at=now, lease_until=now + timedelta(seconds=policy().lease_seconds))
    return bool(renewed)


def progress(attempt: str, token: str, said: Progress) -> bool:
    """Records how far a running attempt is, unless something newer is known already."""
    row = Attempt.objects.filter(pk=find(attempt), token=token, state=Attempt.State.RUNNING).defer("outcome").first()
    if row is None or said.attempt != attempt or said.at < row.progress_seconds:
        return False
    now = timezone.now()
    stages = list(row.stages)
    if not any(entered["stage"] == said.stage for entered in stages):
        stages.append({"stage": said.stage, "since": now.timestamp()})
    largest = 2**31 - 1
    told = Attempt.objects.filter(
        pk=row.pk, state=Attempt.State.RUNNING, progress_seconds=row.progress_seconds, progress_at=row.progress_at
    ).update(
        stage=said.stage,
        stages=stages,
        sentence=clean(said.sentence),
        done=min(max(said.done, 0), largest),
        total=min(max(said.total, 0), largest),
        unit=clean(said.unit)[:60],
        progress_at=now,
        progress_seconds=said.at,
    )
    return bool(told)


def worker_seen(said: WorkerSeen) -> None:
    """Keeps a worker's latest sign of life."""
    Worker.objects.update_or_create(
        name=clean(said.worker),
        defaults={
            "machine_class": clean(said.machine_class)[:40],
            "state": said.state,
            "isolation": clean(said.isolation)[:20],
            "description": clean(said.description),
            "attempt": clean(said.attempt)[:64],
            "seen_at": timezone.now(),
        },
    )
