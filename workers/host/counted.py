"""`python -m workers.host.counted FD NCU`: a host below Nsight Compute, which counts in its kernels.

Nsight Compute starts the program that it looks into, and may keep no descriptor open for it. So this one starts Nsight Compute,
that starts this module again (with the path of a socket in place of a descriptor), and there the judge's socket is handed over.
When that host has left, the report is written and told in words, into its folder, and only then the judge is answered. What lies
there is the contributor's word about the contributor's code: it is shown and believed by nobody.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.slots.kind import Driver
from workers.host.__main__ import load, serve
from workers.host.profiled import FOLDER, WatchedDriver
from workers.wire import Kept, Load, send

REPORT = "kernels.ncu-rep"
WORDS = "kernels.txt"
KERNELS = 32
"""Kernels that are counted in, the first of the calls after those that warm up: each is run ten times and more."""
MEETING = "/tmp/host.sock"
START_SECONDS = 90.0


class CountedDriver(WatchedDriver):
    """Its calls' kernels are counted in."""

    @contextmanager
    def watching(self, operation: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


def under(program: str, sock: socket.socket) -> None:
    """Runs a host under `program` on the judge's end, and has it told in words what was counted."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as meeting:
        meeting.bind(MEETING)
        meeting.listen(1)
        meeting.settimeout(START_SECONDS / 100)
        options = ["--profile-from-start", "off", "--launch-count", str(KERNELS), "--set", "basic", "--force-overwrite"]
        itself = [sys.executable, "-B", "-s", "-P", "-m", "workers.host.counted", MEETING]
        counting = subprocess.Popen([program, *options, "--export", str(FOLDER / REPORT), *itself])
        with _met(meeting, counting) as connection:
            socket.send_fds(connection, [b"x"], [sock.fileno()])
    # What went wrong is among what Nsight Compute and its program wrote, which whoever asked is shown when this ends.
    if counting.wait() or not Path(FOLDER, REPORT).exists():
        raise SystemExit("Nsight Compute left no report.")
    with Path(FOLDER, WORDS).open("wb") as words:
        told = [program, "--import", str(FOLDER / REPORT), "--page", "details", "--print-details", "header"]
        subprocess.run(told, stdout=words, stderr=subprocess.STDOUT, check=False)
    send(sock, Kept())
    # Whoever asked takes the files, and ends this.
    sock.recv(1)


def _met(meeting: socket.socket, counting: "subprocess.Popen[bytes]") -> socket.socket:
    """The connection of the host that `counting` starts. Ends this process where none comes."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and counting.poll() is None:
        try:
            return meeting.accept()[0]
        except TimeoutError:
            continue
    raise SystemExit("Nsight Compute did not start its program.")


def counted(message: Load) -> tuple[Driver, bool]:
    """The driver of a slot file. Replays would show a graph and not its kernels."""
    return CountedDriver(load(message)[0]), False


def main() -> None:
    """Serves below Nsight Compute, or starts it."""
    if sys.argv[1].startswith("/"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as meeting:
            meeting.connect(sys.argv[1])
            _, fds, _, _ = socket.recv_fds(meeting, 1, 1)
        serve(socket.socket(fileno=fds[0]), counted)
    else:
        under(sys.argv[2], socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)


if __name__ == "__main__":
    main()
