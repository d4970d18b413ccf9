"""Starts processes that end with the one that started them, and ends them."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from django.conf import settings

GRACE_SECONDS = 3.0


class Child:
    """A process of its own process group."""

    def __init__(self, name: str, command: Sequence[str], log: Path | None = None, **environment: str) -> None:
        self.name = name
        self._command = command
        self.restarts = 0
        self._log = log
        self._environment = environment
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = os.environ | self._environment
        path = [str(settings.ROOT), str(settings.ROOT / "platform"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
        parent = os.getpid()
        output = self._log.open("ab") if self._log else None
        try:
            return subprocess.Popen(
                [sys.executable, "-c", _TETHERED, str(parent), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                cwd=settings.ROOT,
                env=environment,
                start_new_session=True,
            )
        finally:
            if output:
                output.close()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def restart(self) -> None:
        """Starts it again, after it has ended."""
        self.end()
        self.restarts += 1
        self.process = self._start()

    def last_words(self) -> str:
        """The end of what it wrote to its log."""
        if self._log is None:
            return ""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])

    def ask_to_end(self) -> None:
        """SIGTERM to all of its group."""
        self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends it and all of its group: asked first, then killed."""
        self.ask_to_end()
        # A judge worker would end its attempt first; the attempt is made again, so nothing is lost by not waiting for that.
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)


def end_all(children: Sequence[Child]) -> None:
    """Ends them, all at the same time."""
    for child in children:
        child.ask_to_end()
    for child in children:
        child.end()


# Sets the parent-death signal (prctl(2): PR_SET_PDEATHSIG, SIGKILL) in the child itself: between fork and exec, Python code
# may not run safely beside threads. Killed, because whatever is killed loses nothing, and what lingers would share the state
# of the next run.
_TETHERED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter; to be given to Child."""
    return ["-m", module, *arguments]


def manage(*arguments: str) -> list[str]:
    """The command that runs manage.py with this interpreter; to be given to Child."""
    return [str(settings.ROOT / "manage.py"), *arguments]
