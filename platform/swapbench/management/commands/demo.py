"""`manage.py demo`: judges the sample pull requests on this machine, merges what qualifies, and serves the pages."""

import fcntl
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from kombu.exceptions import OperationalError
from rich.console import Console

from swapbench.control.processes import Child, end_all, manage, python_module
from swapbench.demo import progress, state
from swapbench.demo.localforge import make_forge
from swapbench.demo.samples import Sample, SampleError, read_samples
from swapbench.forge.mirror import GitError
from swapbench.submissions.policy import policy
from workers.protocol import CONTROL_QUEUE, judge_queue

DEMO_POLICY = {"first_time_needs_approval": False, "merge_approvals": 0}
"""The demo's pull requests are its own, so nobody needs to read them before they run and are merged."""

WATCH_SECONDS = 2.0
"""Between looks at the database: attempts measure time on the same cores."""
NO_TERMINAL_WIDTH = 160
RESTARTS_AT_MOST = 3


class Command(BaseCommand):
    requires_system_checks = ()  # They import every page, which takes seconds.
    help = "Judge the sample pull requests on this machine, merge what qualifies, and serve the pages until Ctrl-C."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--once", action="store_true", help="end when all is judged and merged; serve no pages")
        parser.add_argument(
            "--json", dest="json_file", type=Path, metavar="FILE", help="write verdicts, stage times and reasons there"
        )
        parser.add_argument("--fresh", action="store_true", help="forget earlier runs and start over")
        parser.add_argument("--port", type=int, default=8000, help="of the pages (default: %(default)s)")
        parser.add_argument("--pulls", type=Path, help="folder of the samples (default: demo/pulls)")
        parser.add_argument("--worker", metavar="COMMAND", help="what runs as judge worker (default: swapbench worker)")

    def handle(
        self,
        *,
        once: bool,
        json_file: Path | None,
        fresh: bool,
        port: int,
        pulls: Path | None,
        worker: str | None,
        **options: Any,
    ) -> None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = NO_TERMINAL_WIDTH
        if settings.SWAPBENCH_FORGE != "local":
            raise CommandError("The demo makes a forge of its own; unset SWAPBENCH_FORGE to run it.")
        try:
            samples = read_samples(pulls or settings.ROOT / "demo" / "pulls")
        except SampleError as error:
            raise CommandError(str(error)) from None
        if not samples:
            raise CommandError(f"There are no samples in {pulls or 'demo/pulls'}.")
        signal.signal(signal.SIGTERM, _interrupt)
        with ExitStack() as stack:
            stack.enter_context(_ended_quietly(console))
            stack.enter_context(_alone(settings.VAR / "demo.lock"))
            if not once:
                _port_is_free(port)
            began = time.monotonic()
            self._prepare(console, samples, fresh)
            children: list[Child] = []
            stack.callback(end_all, children)
            for child in _children(once, port, worker):
                children.append(child)
            found = self._watch(console, samples, children, None if once else port)
            seconds = time.monotonic() - began
            console.print(progress.table(found))
            if json_file is not None:
                _write(json_file, found, seconds)
                console.print(f"Written to {json_file}.")
            if not once:
                console.print(f"The pages are at http://127.0.0.1:{port}/ until you press Ctrl-C.")
                while True:
                    _tend(children, console)
                    time.sleep(WATCH_SECONDS)
        if once and any(pull.unexpected() for pull in found):
            raise CommandError("Not every sample came out as expected; the table says where.", returncode=1)

    def _prepare(self, console: Console, samples: list[Sample], fresh: bool) -> None:
        given = dict(settings.SWAPBENCH_POLICY)
        settings.SWAPBENCH_POLICY = {**DEMO_POLICY, **given}
        os.environ["SWAPBENCH_POLICY"] = json.dumps(settings.SWAPBENCH_POLICY)
        if fresh:
            _forget()
        call_command("migrate", verbosity=0, interactive=False)
        if fresh:
            _purge()
            if connection.vendor != "sqlite":
                call_command("flush", verbosity=0, interactive=False)
        try:
            make_forge(settings.SWAPBENCH_LOCAL_FORGE, settings.ROOT, samples, settings.SWAPBENCH_BRANCH)
        except GitError as error:
            raise CommandError(f"The demo's forge could not be made: {error}") from None
        console.print(f"The forge is {settings.SWAPBENCH_LOCAL_FORGE}, with {len(samples)} pull requests.")

    def _watch(
        self, console: Console, samples: list[Sample], children: list[Child], port: int | None
    ) -> list[state.Pull]:
        """Shows the bars until all samples have come to their end, then returns what became of them."""
        if port is not None:
            console.print(f"The pages are at http://127.0.0.1:{port}/")
        bars = progress.Bars(console)
        with bars.progress:
            while True:
                found = state.pulls(samples)
                bars.show(found)
                ended = all(pull.ended for pull in found) and state.live_build() is None
                if ended and not state.may_enter_still(found):
                    return state.pulls(samples, with_outcomes=True)
                _tend(children, console)
                time.sleep(WATCH_SECONDS)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _ended_quietly(console: Console) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopped. Run it again to go on where it was.")
        raise SystemExit(130) from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds the demo's lock: two at a time would share a database, a forge and a broker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"A demo is running already in {path.parent}. Stop it first (Ctrl-C).") from None
        yield


def _port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise CommandError(f"Port {port} cannot be used: {error}. Choose another with --port.") from None


def _forget() -> None:
    """Removes what earlier runs left: database, forge, mirrors and messages."""
    for name in ("swapbench.sqlite3", "swapbench.sqlite3-wal", "swapbench.sqlite3-shm"):
        (settings.VAR / name).unlink(missing_ok=True)
    for folder in (settings.SWAPBENCH_LOCAL_FORGE, *(settings.VAR / name for name in ("mirror.git", "worker"))):
        shutil.rmtree(folder, ignore_errors=True)
    for message in (settings.VAR / "broker").rglob("*"):
        if message.is_file():
            message.unlink(missing_ok=True)


def _purge() -> None:
    """Takes the messages of earlier runs from the broker: a worker would make their attempts once more."""
    from swapbench.celery import app

    try:
        with app.connection_for_write() as broker:
            for queue in (CONTROL_QUEUE, *(judge_queue(name) for name in policy().machine_classes)):
                try:
                    broker.default_channel.queue_purge(queue)
                except broker.channel_errors:
                    continue  # There is no such queue yet.
    except OperationalError as error:
        raise CommandError(f"The broker cannot be reached: {error}. Check SWAPBENCH_BROKER_URL.") from None


def _children(once: bool, port: int, worker: str | None) -> Iterator[Child]:
    logs = settings.VAR / "log"
    logs.mkdir(parents=True, exist_ok=True)
    if not once:
        limits = (f"--max-request-body-size={settings.DATA_UPLOAD_MAX_MEMORY_SIZE}", "--threads=8")
        web = python_module("waitress", f"--listen=127.0.0.1:{port}", *limits, "swapbench.wsgi:application")
        yield Child("web", web, logs / "web.log")
    yield Child("control", manage("control"), logs / "control.log")
    machine_class = policy().machine_classes[0]
    command = worker.split() if worker else python_module("workers.cli", "worker", "--machine-class", machine_class)
    environment = {"SWAPBENCH_MACHINE_CLASS": machine_class}
    if machine_class.startswith("cpu"):
        environment["CUDA_VISIBLE_DEVICES"] = ""
    yield Child("judge worker", command, logs / "worker.log", **environment)


def _tend(children: list[Child], console: Console) -> None:
    """Starts again what ended; what keeps ending has something to say about it."""
    for child in children:
        if child.ended:
            status = child.process.returncode
            if child.restarts >= RESTARTS_AT_MOST:
                raise CommandError(
                    f"The {child.name} ended {child.restarts + 1} times, at last with status {status}:\n"
                    f"{child.last_words()}\n`swapbench doctor` says what this machine lacks."
                )
            console.print(f"The {child.name} ended with status {status}; it is started again.")
            child.restart()


def _write(path: Path, found: list[state.Pull], seconds: float) -> None:
    said = {"pulls": [pull.as_json() for pull in found], "seconds": round(seconds, 1), "finished": time.time()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
