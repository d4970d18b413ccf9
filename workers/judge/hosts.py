"""Opens module hosts: which tree, which slot file, what a host may see and use."""

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from workers import wire
from workers.judge.client import HostClient
from workers.sandbox import GIB, MIB, Confinement, Limits, interpreter_view, spawn

LOAD_SECONDS = 30.0


@dataclass(frozen=True)
class Side:
    """One implementation as a host can load it: the folder that holds `engine/`, and the slot file's path in it."""

    tree: Path
    path: str
    name: str


@dataclass
class Hosts:
    """Opens one host at a time at one isolation level.

    `slot` picks the unprivileged user, one for each accelerator of the machine.
    """

    level: str
    threads: int = 1
    slot: int = 0
    memory_bytes: int = 4 * GIB
    call_timeout: float = 30.0
    unconfined: bool = False
    opened: int = field(default=0, init=False)
    _current: HostClient | None = field(default=None, init=False, repr=False)

    def open(self, side: Side) -> HostClient:
        """A fresh host that has imported the side's slot file; an earlier one is ended first, so that one at most is alive.

        Raises what `HostClient.load` raises, and SandboxError where the sandbox cannot be set up.
        """
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_MESSAGE_BYTES)
        try:
            process = spawn(self._confinement(side, theirs.fileno()), self.level, unconfined=self.unconfined)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        client = HostClient(process, ours, self.call_timeout)
        self._current = client
        self.opened += 1
        try:
            client.load(process.path(f"/swapbench/{side.path}"), self.threads, min(LOAD_SECONDS, self.call_timeout))
        except BaseException:
            self.close()
            raise
        return client

    def close(self) -> None:
        """Ends the current host, if there is one."""
        if self._current is not None:
            self._current.close()
            self._current = None

    def _confinement(self, side: Side, fd: int) -> Confinement:
        view = interpreter_view()
        workers = Path(wire.__file__).resolve().parent
        files = {
            str(side.tree / "engine"): "/swapbench/engine",
            str(workers / "__init__.py"): "/swapbench/workers/__init__.py",
            str(workers / "wire.py"): "/swapbench/workers/wire.py",
            str(workers / "host"): "/swapbench/workers/host",
        }
        threads = str(self.threads)
        return Confinement(
            argv=(sys.executable, "-B", "-s", "-P", "-m", "workers.host", "3"),
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": "/tmp",
                "TMPDIR": "/tmp",
                "USER": "host",
                "LOGNAME": "host",
                "LANG": "C.UTF-8",
                "PYTHONPATH": "/swapbench",
                "PYTHONHASHSEED": "0",
                "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
                "TRITON_CACHE_DIR": "/tmp/triton",
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                # The default spins for 200 ms after each parallel region, which would count as work between calls.
                "KMP_BLOCKTIME": "0",
            },
            readonly=dict(view.readonly) | files,
            symlinks=view.symlinks,
            scratch={"/tmp": 256 * MIB},
            socket=fd,
            socket_number=3,
            working_directory="/swapbench",
            limits=Limits(memory_bytes=self.memory_bytes, pids=64 + 8 * self.threads, cpus=self._cpus()),
            slot=self.slot,
        )

    def _cpus(self) -> frozenset[int] | None:
        """The processors a host is bound to: the last ones, so that the judge and the rest of the machine keep the first."""
        mine = sorted(os.sched_getaffinity(0))
        if len(mine) <= self.threads:
            return None
        return frozenset(mine[-self.threads :])
