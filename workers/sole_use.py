"""One attempt at a time on an accelerator, whoever starts it: a worker, a second worker by mistake, or somebody's `swapbench check`."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.2


class Occupied(Exception):
    """Another attempt holds the accelerator for longer than one waits; `str(error)` is a sentence."""


def lock_file(accelerator: int) -> Path:
    """The file whose lock stands for the accelerator, the same for every process of this user."""
    folder = Path("/run/lock")
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    return folder / f"swapbench-{os.geteuid()}-accelerator-{accelerator}.lock"


@contextmanager
def sole_use(accelerator: int, wait_seconds: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the accelerator's lock, which the kernel lets go of when this process ends, however it ends.

    `waiting` is called once where somebody else holds it. Raises Occupied after `wait_seconds`.
    """
    number = os.open(lock_file(accelerator), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        told = False
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    waiting()
                    told = True
                if time.monotonic() > deadline:
                    raise Occupied(
                        f"Accelerator {accelerator} of this machine was in use by another attempt for {wait_seconds:.0f} s."
                    ) from None
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(number)
