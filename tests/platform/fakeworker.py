"""A judge worker that judges nothing: a real Celery process that speaks the real protocol, for tests of what can go wrong.

It holds each attempt until the file $FAKE_GO exists, with heartbeats all the while, and then says that all files are faster.
"""

import os
import time
from pathlib import Path

from celery import Celery, signals

from tests.platform.outcomes import implementation
from workers import folderbroker
from workers.protocol import (
    CONTROL_QUEUE,
    FINISHED_TASK,
    HEARTBEAT_TASK,
    JUDGE_TASK,
    PROGRESS_TASK,
    STARTED_TASK,
    WORKER_TASK,
    Outcome,
    Progress,
    StageReport,
    WorkerSeen,
    celery_settings,
    decode_job,
    encode,
    sign,
)

NAME = os.environ.get("FAKE_NAME", "fake")
GO = Path(os.environ.get("FAKE_GO", "/nonexistent"))
CLASS = os.environ.get("SWAPBENCH_MACHINE_CLASS", "cpu-test")
BEAT = 0.5

folderbroker.install()
app = Celery("fake-worker")
app.conf.update(celery_settings(os.environ, Path(__file__).resolve().parents[2]))


def send(task: str, *arguments: str) -> None:
    app.send_task(task, args=arguments, queue=CONTROL_QUEUE)


@signals.worker_ready.connect
def ready(**_: object) -> None:
    send(WORKER_TASK, encode(WorkerSeen(NAME, CLASS, "idle", "full", "A worker of the tests.")))


@app.task(name=JUDGE_TASK)
def judge(job_json: str) -> None:
    job = decode_job(job_json)
    send(STARTED_TASK, job.attempt, job.token, NAME)
    while not GO.exists():
        send(HEARTBEAT_TASK, job.attempt, job.token, NAME)
        progress = Progress(job.attempt, "performance", "Pair 1 of 8.", 1, 8, "pairs", time.time())
        send(PROGRESS_TASK, job.attempt, job.token, encode(progress))
        send(WORKER_TASK, encode(WorkerSeen(NAME, CLASS, "busy", "full", "", job.attempt)))
        time.sleep(BEAT)
    speed = "faster" if "performance" in job.suites else "not_measured"
    found = [implementation(file.path, "passed", speed, Path(file.path).stem) for file in job.files]
    outcome = Outcome(job.attempt, "passed", found, [StageReport("unit", 0.1)], isolation="full", seed="00" * 32)
    text = encode(outcome)
    send(FINISHED_TASK, job.attempt, text, sign(job.token, text))
    send(WORKER_TASK, encode(WorkerSeen(NAME, CLASS, "idle", "full", "A worker of the tests.")))
