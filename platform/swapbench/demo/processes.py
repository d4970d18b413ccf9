"""The demo's processes: the same commands that a deployment runs, ended together whatever ends the demo."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from swapbench.demo.samples import DemoError

PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 10.0
# The demo's pull requests are its own, so nobody needs to read them first; a public instance keeps the defaults.
POLICY = '{"first_time_needs_approval": false, "merge_approvals": 0}'


def _die_with_parent() -> None:
    # The kernel ends the child when the demo ends, even by SIGKILL (prctl(2)).
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class Processes:
    """Children in process groups of their own, with a log file each. A context manager that ends them all."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: list[str]) -> None:
        """Starts `command`; what it prints goes to NAME.log."""
        environment = {"SWAPBENCH_POLICY": POLICY} | os.environ
        environment |= {"PYTHONPATH": f"{settings.ROOT}:{settings.ROOT / 'platform'}", "PYTHONUNBUFFERED": "1"}
        with open(self.logs / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                command,
                cwd=settings.ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def dead(self) -> list[str]:
        """Names of processes that have ended by themselves."""
        return [name for name, process in self.running.items() if process.poll() is not None]

    def tail(self, name: str, lines: int = 12) -> str:
        """The last lines of a process's log."""
        text = (self.logs / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def web(port: int) -> list[str]:
    """The command of the web server."""
    return [sys.executable, "-m", "waitress", f"--listen=127.0.0.1:{port}", "--threads=6", "swapbench.wsgi:application"]


def control() -> list[str]:
    """The command of the control plane: scheduler and control worker."""
    return [sys.executable, str(settings.ROOT / "manage.py"), "control"]


def judge() -> list[str]:
    """The command of one worker, for the machine class of this machine."""
    return [sys.executable, "-m", "workers.cli", "worker"]


def check_port(port: int) -> None:
    """Raises DemoError where the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise DemoError(f"Port {port} is taken. Choose another: make demo ARGS='--port {port + 1}'") from None
