"""The Celery app of the control plane. It sends jobs, and takes what workers say; each task calls one action.

    celery -A swapbench.celery worker -Q control --pool solo

`manage.py control` runs it beside the scheduler.
"""

import os

import django
from celery import Celery
from django.conf import settings
from django.db import close_old_connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "swapbench.settings")
django.setup()

from swapbench.submissions import lease
from swapbench.submissions import record as records
from workers import folderbroker
from workers.protocol import (
    FINISHED_TASK,
    HEARTBEAT_TASK,
    JUDGE_TASK,
    PROGRESS_TASK,
    STARTED_TASK,
    WORKER_TASK,
    decode_progress,
    decode_worker_seen,
    judge_queue,
)

folderbroker.install()
app = Celery("swapbench-control")
app.conf.update(settings.CELERY)


def send_job(machine_class: str, job: str, expires: float) -> None:
    """Gives a job to the workers of a machine class."""
    app.send_task(JUDGE_TASK, args=[job], queue=judge_queue(machine_class), expires=expires, retry=False)


@app.task(name=STARTED_TASK)
def attempt_started(attempt: str, token: str, worker: str) -> None:
    close_old_connections()
    lease.started(attempt, token, worker)


@app.task(name=HEARTBEAT_TASK)
def attempt_heartbeat(attempt: str, token: str, worker: str) -> None:
    close_old_connections()
    lease.heartbeat(attempt, token, worker)


@app.task(name=PROGRESS_TASK)
def attempt_progress(attempt: str, token: str, progress: str) -> None:
    close_old_connections()
    lease.progress(attempt, token, decode_progress(progress))


@app.task(name=FINISHED_TASK)
def attempt_finished(attempt: str, outcome: str, signature: str) -> None:
    close_old_connections()
    records.record(attempt, outcome, signature)


@app.task(name=WORKER_TASK)
def worker_seen(worker: str) -> None:
    close_old_connections()
    lease.worker_seen(decode_worker_seen(worker))
