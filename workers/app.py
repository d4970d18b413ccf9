"""The Celery app of a judge worker: one worker per accelerator, one attempt at a time.

    celery -A workers.app worker -Q judge.cpu-x86 --pool solo

Has no database and no forge credentials, and never imports torch: each attempt is a fresh process. What it learns of the
attempt it tells the control plane by messages, any of which may be lost.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery, signals

from workers import folderbroker
from workers.protocol import (
    CONTROL_QUEUE,
    FINISHED_TASK,
    HEARTBEAT_SECONDS,
    HEARTBEAT_TASK,
    JUDGE_TASK,
    PROGRESS_TASK,
    STARTED_TASK,
    WORKER_TASK,
    Job,
    Outcome,
    ProtocolError,
    Reason,
    WorkerSeen,
    celery_settings,
    decode_job,
    decode_outcome,
    encode,
    sign,
)

ROOT = Path(__file__).resolve().parent.parent
VAR = Path(os.environ.get("SWAPBENCH_VAR") or ROOT / "var").resolve()
GRACE_SECONDS = 15.0
PROGRESS_SECONDS = 0.4

folderbroker.install()
app = Celery("swapbench-worker")
app.conf.update(celery_settings(os.environ, ROOT))


def worker_name() -> str:
    """How this worker is called on pages: SWAPBENCH_WORKER, else host name and accelerator number."""
    return os.environ.get("SWAPBENCH_WORKER") or f"{socket.gethostname()}-{accelerator()}"


def accelerator() -> int:
    """Which accelerator of the machine this worker is for: SWAPBENCH_ACCELERATOR, default 0."""
    return int(os.environ.get("SWAPBENCH_ACCELERATOR", "0"))


class Presence:
    """Tells the control plane every few seconds that this worker lives and what it does."""

    def __init__(self) -> None:
        self.state = "idle"
        self.attempt = ""
        self._facts: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Asks once, in a process of its own, what this machine is, then tells it from a thread."""
        asked = subprocess.run(
            [sys.executable, "-m", "workers.judge.announce"], capture_output=True, text=True, check=False, timeout=120
        )
        with suppress(ValueError):
            self._facts = json.loads(asked.stdout)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def tell(self) -> None:
        """Sends one sign of life."""
        seen = WorkerSeen(
            worker=worker_name(),
            machine_class=self._facts.get("machine class", "unknown"),
            state="busy" if self.attempt else "idle",
            isolation=self._facts.get("isolation", "none"),
            description=self._facts.get("description", ""),
            attempt=self.attempt,
        )
        send(WORKER_TASK, encode(seen))

    def _run(self) -> None:
        while True:
            self.tell()
            if self._stop.wait(HEARTBEAT_SECONDS):
                return


presence = Presence()


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    presence.start()


@signals.worker_shutting_down.connect
def _stopping(**_: Any) -> None:
    presence.stop()


def send(task: str, *arguments: object) -> None:
    """Sends a message to the control plane. A broker that is away is no reason to lose the attempt."""
    with suppress(Exception):
        app.send_task(task, args=arguments, queue=CONTROL_QUEUE, retry=True, retry_policy={"max_retries": 3})


@app.task(name=JUDGE_TASK)
def judge(job_json: str) -> None:
    """Makes one attempt in a process of its own and sends its outcome."""
    try:
        job = decode_job(job_json)
    except ProtocolError as error:
        # Nobody can be told: without a readable job there is no attempt. Its lease will end, and the reaper says so.
        print(f"A job was dropped: {error}", file=sys.stderr)
        return
    presence.attempt = job.attempt
    try:
        text = encode(run_attempt(job))
        send(FINISHED_TASK, job.attempt, text, sign(job.token, text))
    finally:
        presence.attempt = ""
        presence.tell()


def run_attempt(job: Job) -> Outcome:
    """The outcome of the attempt's process, or why it left none."""
    me = worker_name()
    send(STARTED_TASK, job.attempt, job.token, me)
    VAR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="attempt-", dir=VAR) as folder:
        job_file, outcome_file = Path(folder, "job.json"), Path(folder, "outcome.json")
        job_file.write_text(encode(job))
        read_end, write_end = os.pipe()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "workers.lifeline",
                str(os.getpid()),
                str(job_file),
                "--out",
                str(outcome_file),
                "--mirror",
                str(VAR / "worker" / f"mirror-{accelerator()}.git"),
                "--progress-fd",
                str(write_end),
                "--slot",
                str(accelerator()),
            ],
            pass_fds=(write_end,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(write_end)
        said = _Drain(process)
        deadline = time.monotonic() + job.deadline_seconds + GRACE_SECONDS
        _relay(job, me, read_end, process, deadline)
        overdue = process.poll() is None
        if overdue:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
        process.wait()
        unreadable = ""
        try:
            return decode_outcome(outcome_file.read_bytes())
        except OSError:
            pass
        except ProtocolError as error:
            unreadable = f"It wrote one that cannot be read: {error}"
    if overdue:
        sentence = f"The attempt did not end within {job.deadline_seconds:.0f} s and was stopped."
        return Outcome(job.attempt, "timed_out_infrastructure", [], [], [Reason("attempt_overdue", sentence)])
    sentence = f"The attempt's process ended without an outcome (exit status {process.returncode}). {unreadable or said.tail()}"
    return Outcome(job.attempt, "invalid_environment", [], [], [Reason("attempt_died", sentence[:3900])])


class _Drain:
    """Keeps the end of what a process prints, so that it never blocks on a full pipe."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._end = b""
        self._process = process
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._process.stdout is not None
        while block := self._process.stdout.read1(65536):  # type: ignore[attr-defined]
            self._end = (self._end + block)[-8192:]

    def tail(self) -> str:
        self._thread.join(2)
        return self._end.decode(errors="replace").strip()[-3000:]


def _relay(job: Job, me: str, read_end: int, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Passes progress on and renews the lease until the process ends or its time is up."""
    pending = b""
    latest: bytes | None = None
    last_beat = last_progress = 0.0
    open_ = True
    with open(read_end, "rb", buffering=0) as pipe:
        while (now := time.monotonic()) < deadline:
            if open_ and select.select([pipe], [], [], 0.1)[0]:
                block = pipe.read(65536)
                open_ = bool(block)
                *lines, pending = (pending + (block or b"")).split(b"\n")
                latest = next((line for line in reversed(lines) if line), latest)
            elif not open_:
                time.sleep(0.05)
            if latest is not None and now - last_progress >= PROGRESS_SECONDS:
                send(PROGRESS_TASK, job.attempt, job.token, latest.decode(errors="replace"))
                latest, last_progress = None, now
            if now - last_beat >= HEARTBEAT_SECONDS:
                send(HEARTBEAT_TASK, job.attempt, job.token, me)
                last_beat = now
            if process.poll() is not None and not open_:
                return
