"""A real Celery worker on a broker of its own: what it tells the control plane, and what is left when something is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.workers.repository import NORM, Repository, header
from workers.protocol import (
    CONTROL_QUEUE,
    FINISHED_TASK,
    HEARTBEAT_TASK,
    JUDGE_TASK,
    PROGRESS_TASK,
    STARTED_TASK,
    Job,
    celery_settings,
    decode_outcome,
    encode,
    judge_queue,
    signature_holds,
)

ROOT = Path(__file__).resolve().parent.parent.parent
PATH = "engine/normalization/tried.py"
SLOW_IMPORT = header() + "import time\ntime.sleep(25)\n" + NORM


class Control:
    """Stands where the control plane would: sends jobs, and keeps what comes back."""

    def __init__(self, var: Path) -> None:
        self.environment = {key: value for key, value in os.environ.items() if key != "SWAPBENCH_BROKER_URL"}
        self.environment |= {"SWAPBENCH_VAR": str(var), "SWAPBENCH_WORKER": "test-worker"}
        self.app = Celery("control")
        self.app.conf.update(celery_settings({"SWAPBENCH_VAR": str(var)}, ROOT))
        self.seen: list[tuple[str, list[Any]]] = []
        command = [
            "celery",
            "-A",
            "workers.app",
            "worker",
            "-Q",
            judge_queue("cpu-x86"),
            "--pool",
            "solo",
            "-l",
            "warning",
        ]
        self.log = open(var / "worker.log", "wb")  # noqa: SIM115 (lives as long as the worker)
        self.worker = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=self.environment,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def send(self, job: Job) -> None:
        self.app.send_task(JUDGE_TASK, args=[encode(job)], queue=judge_queue("cpu-x86"))

    def poll(self) -> None:
        with self.app.connection_for_read() as connection, connection.SimpleQueue(CONTROL_QUEUE) as queue:
            while len(queue) and (message := queue.get(timeout=5)):
                self.seen.append((message.headers["task"], message.payload[0]))
                message.ack()

    def wait(self, wanted: Callable[[], Any], seconds: float = 60.0) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.poll()
            found = wanted()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"Nothing came in {seconds} s; seen: {[name for name, _ in self.seen]}")

    def of(self, task: str) -> list[list[Any]]:
        return [arguments for name, arguments in self.seen if name == task]

    def attempt_pid(self) -> int | None:
        return next(iter(pids_with("workers.lifeline", str(self.worker.pid))), None)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.worker.wait()
        self.log.close()


def pids_with(*words: str) -> list[int]:
    """Processes whose command line holds all the words as arguments."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if all(word in arguments for word in words):
                    found.append(int(folder.name))
    return found


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(tmp_path)
    yield control
    control.end()


def test_a_job_is_started_told_of_and_finished_once(control: Control, repository: Repository) -> None:
    job = repository.job(repository.pull({PATH: header() + NORM}), PATH)
    control.send(job)
    attempt, text, signature = control.wait(lambda: control.of(FINISHED_TASK))[0]
    assert attempt == job.attempt
    assert signature_holds(job.token, text, signature)
    assert not signature_holds("f" * 64, text, signature)
    assert decode_outcome(text).status == "passed"
    assert control.of(STARTED_TASK) == [[job.attempt, job.token, "test-worker"]]
    assert control.of(HEARTBEAT_TASK)
    assert any(json.loads(arguments[2])["stage"] == "unit" for arguments in control.of(PROGRESS_TASK))


def test_a_killed_attempt_is_an_invalid_environment_and_the_worker_goes_on(
    control: Control, repository: Repository
) -> None:
    job = repository.job(repository.pull({PATH: SLOW_IMPORT}), PATH)
    control.send(job)
    pid = control.wait(control.attempt_pid)
    os.kill(pid, signal.SIGKILL)
    _, text, _ = control.wait(lambda: control.of(FINISHED_TASK))[0]
    outcome = decode_outcome(text)
    assert outcome.status == "invalid_environment"
    assert "without an outcome" in outcome.reasons[0].sentence
    honest = repository.job(repository.pull({PATH: header() + NORM}), PATH)
    control.send(honest)
    control.wait(lambda: [a for a in control.of(FINISHED_TASK) if a[0] == honest.attempt])


def test_a_killed_worker_leaves_no_attempt_and_no_host(control: Control, repository: Repository) -> None:
    control.send(repository.job(repository.pull({PATH: SLOW_IMPORT}), PATH))
    attempt = control.wait(control.attempt_pid)
    hosts = control.wait(lambda: [pid for pid in pids_with("workers.host") if descends(pid, attempt)])
    os.kill(control.worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}/cmdline").exists() for pid in [attempt, *hosts]):
        time.sleep(0.05)
    left = [pid for pid in [attempt, *hosts] if alive(pid)]
    assert not left


def test_a_message_that_is_no_job_is_dropped(control: Control, repository: Repository) -> None:
    control.app.send_task(JUDGE_TASK, args=['{"attempt": 3}'], queue=judge_queue("cpu-x86"))
    job = repository.job(repository.pull({PATH: header() + NORM}), PATH)
    control.send(job)
    assert control.wait(lambda: control.of(FINISHED_TASK))[0][0] == job.attempt


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def descends(pid: int, ancestor: int) -> bool:
    """Whether `ancestor` is above `pid`."""
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            return False
    return False
