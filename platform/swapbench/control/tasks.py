"""What judge workers say, each handed to the action that deals with it."""

from django.db import InterfaceError, OperationalError

from swapbench.celery import app
from swapbench.submissions import lease, record
from workers.protocol import (
    FINISHED_TASK,
    HEARTBEAT_TASK,
    PROGRESS_TASK,
    STARTED_TASK,
    WORKER_TASK,
    decode_progress,
    decode_worker_seen,
)


@app.task(name=STARTED_TASK)
def attempt_started(attempt: str, token: str, worker: str) -> None:
    lease.started(attempt, token, worker)


@app.task(name=HEARTBEAT_TASK)
def attempt_heartbeat(attempt: str, token: str, worker: str) -> None:
    lease.heartbeat(attempt, token, worker)


@app.task(name=PROGRESS_TASK)
def attempt_progress(attempt: str, token: str, progress: str) -> None:
    lease.progress(attempt, token, decode_progress(progress))


# Everything else is said again soon; an outcome is said once, and a database that is away must not cost the attempt.
@app.task(name=FINISHED_TASK, autoretry_for=(OperationalError, InterfaceError), default_retry_delay=3, max_retries=20)
def attempt_finished(attempt: str, outcome: str, signature: str) -> None:
    record.record(attempt, outcome, signature)


@app.task(name=WORKER_TASK)
def worker_seen(worker: str) -> None:
    lease.worker_seen(decode_worker_seen(worker))
