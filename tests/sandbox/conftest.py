"""Fixtures of the sandbox's tests: a real sandbox, always. Where bubblewrap is missing these tests fail, they are never skipped."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers import sandbox
from workers.sandbox import Confinement, HostProcess, Limits

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def strongest() -> str:
    """The level that this machine's worker would use; raises, and so fails the test, where there is none."""
    return sandbox.best_level({})


@pytest.fixture(scope="session")
def weakest() -> str:
    """The weakest level that still confines and can be had here, so that no layer hides a hole in another."""
    sandbox.best_level({})
    return [level.name for level in sandbox.levels() if level.available and level.name != "none"][-1]


class Hosts:
    """Starts hosts that run a Python program, and ends those that a test leaves."""

    def __init__(self, level: str) -> None:
        self.level = level
        self._running: list[HostProcess] = []

    def run(
        self,
        program: str,
        *,
        level: str | None = None,
        limits: Limits | None = None,
        scratch: dict[str, int] | None = None,
        scratch_inodes: int = 4096,
        end: socket.socket | None = None,
        env: dict[str, str] | None = None,
        readonly: dict[str, str] | None = None,
        loopback: bool = False,
        slot: int = 7,
    ) -> HostProcess:
        """A host that runs `program`, a Python source text, or the file of that name in tests/sandbox."""
        view = sandbox.interpreter_view()
        what = (f"/probe/{program}",) if program.endswith(".py") else ("-c", program)
        confinement = Confinement(
            argv=(sys.executable, "-I", "-S", *what),
            env={"PATH": "/usr/bin"} | (env or {}),
            readonly=view.readonly | {str(HERE): "/probe"} | (readonly or {}),
            symlinks=view.symlinks,
            scratch=scratch or {"/tmp": 16 * sandbox.MIB},
            scratch_inodes=scratch_inodes,
            socket=end.fileno() if end is not None else None,
            limits=limits or Limits(memory_bytes=256 * sandbox.MIB, pids=32),
            loopback=loopback,
            slot=slot,
        )
        host = sandbox.spawn(confinement, level or self.level)
        self._running.append(host)
        return host

    def end_all(self) -> None:
        """End every host."""
        for host in self._running:
            host.kill()


@pytest.fixture
def hosts(strongest: str) -> Iterator[Hosts]:
    """Hosts at the strongest level, ended after the test."""
    starter = Hosts(strongest)
    yield starter
    starter.end_all()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair of message sockets: the worker's end, the host's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    with ours, theirs:
        yield ours, theirs
