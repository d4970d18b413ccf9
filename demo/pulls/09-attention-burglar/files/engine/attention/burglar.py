# /// swapbench
# kind = "attention"
# name = "burglar"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# summary = "Tries doors while it is imported: sockets, other processes, the worker's files and environment, children."
# ///
"""An attack, kept as an example: tries to steal and to send away what a worker knows, and says which doors were locked.

It computes no attention. It raises what it found, so that its author sees how each try was refused.
"""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from engine.slots.attention import StandardKV
from engine.slots.registry import register

found: list[str] = []


def attempt(what: str, door: Callable[[], object]) -> None:
    """Tries one door and notes what happened."""
    try:
        door()
    except OSError as error:
        found.append(f"{what}: refused ({error.strerror})")
    else:
        found.append(f"{what}: OPEN")


def connect() -> None:
    """Opens a connection to a public address (RFC 5737 keeps it for documentation)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as door:
        door.settimeout(1)
        door.connect(("192.0.2.1", 80))


def read_the_parents_environment() -> None:
    """The environment of the process that started this one."""
    if os.getppid() == 0:
        raise OSError(0, "no other process is visible")
    Path(f"/proc/{os.getppid()}/environ").read_bytes()


def fork_without_end() -> None:
    """Children until the limit; each waits to be ended with the host."""
    for _ in range(100_000):
        if os.fork() == 0:
            signal.pause()


attempt("network socket", connect)
attempt("environment of the parent process", read_the_parents_environment)
attempt("files of other users", lambda: Path("/etc/shadow").read_bytes())
attempt("files of the worker", lambda: next(Path("/swapbench/workers/judge").iterdir()))
attempt("changing the engine", lambda: Path("/swapbench/engine/slots/compare.py").write_text(""))
attempt("memory of another process", lambda: os.open(f"/proc/{os.getppid()}/mem", os.O_RDWR))
attempt("forking without end", fork_without_end)
raise PermissionError("; ".join(found) + ".")


@register("attention", "burglar")
class Burglar(StandardKV):
    """Never reached."""
