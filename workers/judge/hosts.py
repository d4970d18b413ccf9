"""Opens module hosts: which tree, which slot file, what a host may see and use."""

import functools
import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from workers import wire
from workers.judge import accelerator
from workers.judge.client import HostClient
from workers.judge.cores import Cores
from workers.judge.device import DeviceClient, Refills
from workers.sandbox import GIB, MIB, SLOTS, Confinement, HostProcess, Limits, SandboxError, interpreter_view, spawn

LOAD_SECONDS = 30.0
PROFILE_BYTES = 256 * MIB
# A host on the GPU: CUDA's libraries take 3 GiB and 40 threads, torch.compile another process for each of its workers.
DEVICE_MEMORY_BYTES = 16 * GIB
DEVICE_PIDS = 512
DEVICE_SCRATCH_BYTES = 2 * GIB
DEVICE_INODES = 1 << 17
LEAST_SHARE = 8
"""Processors for each accelerator below which sharing them out would leave too few for judge, host and the host that is started ahead."""
LEAST_APART = 8
"""Processors besides the host's below which judge and the host that is started ahead share them."""
# Below this many processors, starting the next host would disturb the one that is being timed.
PROCESSORS_TO_START_AHEAD = 8


@dataclass(frozen=True)
class Side:
    """One implementation as a host can load it: the folder that holds `engine/`, and the slot file's path in it."""

    tree: Path
    path: str
    name: str


@dataclass
class Hosts:
    """Opens hosts at one isolation level. One at a time is alive, or two of which the one that has no turn is frozen.

    `slot` picks the unprivileged user, one for each accelerator of the machine.
    """

    level: str
    threads: int = 1
    slot: int = 0
    memory_bytes: int = 4 * GIB
    call_timeout: float = 30.0
    unconfined: bool = False
    profiled_calls: int = 0
    """Calls of each host that are recorded for their author (workers.host.profiled); 0 wherever anything is judged."""
    counted_by: Path | None = None
    """Nsight Compute's folder, where it counts in the hosts' kernels for their author (workers.host.counted)."""
    device: Literal["cpu", "cuda"] = "cpu"
    refills: Refills = field(default_factory=Refills, init=False)
    """What refilling inputs costs on the accelerator; measured while no host is alive."""
    opened: int = field(default=0, init=False)
    ready_seconds: list[float] = field(default_factory=list, init=False, repr=False)
    """How long each host took from being asked for to having imported its slot file."""
    _users_ahead: int = field(default=0, init=False, repr=False)
    _users_alive: int = field(default=-1, init=False, repr=False)
    """Which two of four users the hosts of the next pair, and of this one, belong to."""
    _behind: bool = field(default=False, init=False, repr=False)
    _may_start_behind: bool = field(default_factory=lambda: os.geteuid() == 0, init=False, repr=False)
    _alive: list[HostClient] = field(default_factory=list, init=False, repr=False)
    _waited: float = field(default=0.0, init=False, repr=False)
    _ahead: list[tuple[Side, HostProcess, socket.socket]] = field(default_factory=list, init=False, repr=False)
    _processors: list[int] = field(default_factory=list, init=False, repr=False)
    """All that this process had before it stepped aside; empty where it has not."""
    _threads: int = field(default=1, init=False, repr=False)
    """And the threads that it computed with."""
    _cores: Cores = field(default_factory=Cores, init=False, repr=False)
    _chosen: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    """The processors on which host and judge were put last."""

    def open(self, side: Side) -> HostClient:
        """A fresh host that has imported the side's slot file; those before it are ended first.

        Raises what `HostClient.load` raises, and SandboxError where the sandbox cannot be set up.
        """
        self.end()
        began = time.monotonic()
        taken = self._taken(side)
        process, ours = taken or self._started(side, self._cpus())
        if taken is not None and self.device == "cuda" and (cpus := self._cpus()) is not None:
            process.bind(cpus)
        self._drop_ahead()
        client = self._served(process, ours)
        self._load(client, process, side)
        self.ready_seconds.append(time.monotonic() - began)
        return client

    def open_pair(self, first: Side, second: Side) -> tuple[HostClient, HostClient]:
        """Fresh hosts of two sides, both frozen: whoever thaws one freezes the other before. Those before them are ended first.

        Both import torch at once, on all processors; a slot file only runs while the other side's host cannot. Raises as `open`.
        """
        self.end()
        began = time.monotonic()
        self.start_pair_ahead(first, second)
        self._users_alive = self._users_ahead
        opened = []
        for side in (first, second):
            taken = self._taken(side)
            if taken is None:
                raise SandboxError("A module host ended before it was given anything to do.")
            process, ours = taken
            opened.append((self._served(process, ours), process, side))
        for client, process, _ in opened:
            client.settle_down()
            if (cpus := self._cpus()) is not None:
                process.bind(cpus)
            client.freeze()
        for client, process, side in opened:
            client.thaw()
            self._load(client, process, side)
            client.freeze()
            self.ready_seconds.append(time.monotonic() - began)
        return opened[0][0], opened[1][0]

    def _served(self, process: HostProcess, ours: socket.socket) -> HostClient:
        kind = DeviceClient if self.device == "cuda" else HostClient
        client = kind(process, ours, self.call_timeout)
        if isinstance(client, DeviceClient):
            client.refills = self.refills
        self._alive.append(client)
        self.opened += 1
        return client

    def _load(self, client: HostClient, process: HostProcess, side: Side) -> None:
        path = process.path(f"/swapbench/{side.path}")
        try:
            client.load(path, self.threads, min(LOAD_SECONDS, self.call_timeout))
        except BaseException:
            self.close()
            raise

    @property
    def roomy(self) -> bool:
        """Whether a host can be started beside one that is being timed without disturbing it."""
        return len(self._processors or os.sched_getaffinity(0)) >= PROCESSORS_TO_START_AHEAD

    def start_ahead(self, side: Side) -> None:
        """Starts the process of the host that `side` is opened with next, while the judge or another host is at work.

        It imports torch and waits. It has neither the slot file nor the accelerator until `open` sends it on its way, which is
        after the host before it has ended. Beside an accelerator it waits on other processors than the host that is being timed.
        """
        if not self._ahead:
            cpus = self._shared_out()[1] if self.device == "cuda" else self._cpus()
            self._ahead.append((side, *self._started(side, cpus)))

    def start_pair_ahead(self, first: Side, second: Side, behind: bool = False) -> None:
        """Starts the processes of the hosts that `open_pair` is called for next, unless they are started already.

        `behind`: while the pair before it is timed, unless that would disturb it. They keep off its processor, and run where nobody else
        would, until this is called without.
        """
        spare = _without_siblings(self._spare_cpus(), self._cpus()) if behind and self._may_start_behind else None
        if behind and not spare:
            return
        if [side for side, process, _ in self._ahead if process.alive()] != [first, second]:
            self._drop_ahead()
            self._users_ahead = 2 if self._users_alive == 0 else 0
            for number, side in enumerate((first, second)):
                # Another user for each, so that the kernel's limits per user never count one host's doings for the other.
                user = self.slot + (self._users_ahead + number) * (SLOTS // 4)
                self._ahead.append((side, *self._started(side, spare, user)))
            if behind:
                self._give_way()
        elif not behind and self._behind:
            for _, process, _ in self._ahead:
                process.give_way(False)
                process.bind(self._processors or os.sched_getaffinity(0))
            self._behind = False

    def _give_way(self) -> None:
        try:
            for _, process, _ in self._ahead:
                process.give_way(True)
                # Whoever may not bring them back must not send them away.
                process.give_way(False)
                process.give_way(True)
            self._behind = True
        except PermissionError:
            self._may_start_behind = False
            self._drop_ahead()

    def ahead_seconds(self) -> float:
        """Processor time so far of the hosts that wait for their turn."""
        return sum(process.cpu_seconds() for _, process, _ in self._ahead)

    def _taken(self, side: Side) -> tuple[HostProcess, socket.socket] | None:
        for number, (waiting, process, ours) in enumerate(self._ahead):
            if waiting == side and process.alive():
                del self._ahead[number]
                return process, ours
        return None

    def _drop_ahead(self) -> None:
        self._behind = False
        while self._ahead:
            _, process, ours = self._ahead.pop()
            process.kill()
            ours.close()

    def _started(
        self, side: Side, cpus: frozenset[int] | None, slot: int | None = None
    ) -> tuple[HostProcess, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_MESSAGE_BYTES)
        try:
            confinement = self._confinement(side, theirs.fileno(), cpus, self.slot if slot is None else slot)
            process = spawn(confinement, self.level, unconfined=self.unconfined)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    def end(self) -> None:
        """Ends the hosts that are alive, if there are any."""
        while self._alive:
            client = self._alive.pop()
            self._waited += client.waited_seconds
            client.close()

    def waited_seconds(self) -> float:
        """How long the judge has waited for answers of hosts, of all that were opened."""
        return self._waited + sum(client.waited_seconds for client in self._alive)

    def starved(self) -> bool:
        """Whether a living host was kept from working by others on this machine."""
        return any(client.starved() for client in self._alive)

    def close(self) -> None:
        """Ends the hosts that are alive and those that wait for their turn, and takes back the processors left to them."""
        self.end()
        self._drop_ahead()
        if self._processors:
            _bind_this_process(self._processors)
            torch.set_num_threads(self._threads)
            self._processors = []

    def step_aside(self) -> None:
        """Keeps this process off the processors that hosts are bound to, and that hosts are started ahead on, until `close`.

        A host on the accelerator launches, and the judge draws, waits without sleeping and compares: on one processor, or on two
        that are one core, either takes half as long again.
        """
        own = self._shared_out()[0]
        if not self._processors and own is not None:
            self._processors = sorted(os.sched_getaffinity(0))
            _bind_this_process(own)
            # What the judge computes there is small, and threads that wait for each other spin: 16 of them on 6 processors took 60 ms to draw a call, one takes 4.
            self._threads = torch.get_num_threads()
            torch.set_num_threads(1)

    def onto_free_cores(self, client: DeviceClient) -> None:
        """Puts a host, and this thread, on processors whose cores nobody else uses now. The host may go on to others that are its share.

        Only where this process has stepped aside, and there is room.
        """
        own, ahead = self._shared_out()
        bound = self._cpus()
        if not self._processors or not self.roomy or own is None or ahead is None or bound is None:
            return
        theirs = self._chosen["host"] = self._cores.free(bound | (ahead - own), self._chosen.get("host"))
        ours = self._chosen["judge"] = self._cores.free(own, self._chosen.get("judge"))
        for _, waiting, _ in self._ahead:
            waiting.bind(_without_siblings(ahead, frozenset({theirs})) or ahead)
        # The kernel moves nobody who sleeps: it has to wake up where it shall stay, and wakes up there from then on.
        process: HostProcess = client.process  # type: ignore[assignment]
        process.bind({theirs})
        client.wake()
        process.bind(bound | {theirs})
        os.sched_setaffinity(0, {ours})

    def _confinement(self, side: Side, fd: int, cpus: frozenset[int] | None, slot: int) -> Confinement:
        view = interpreter_view()
        workers = Path(wire.__file__).resolve().parent
        files = {
            str(side.tree / "engine"): "/swapbench/engine",
            str(workers / "__init__.py"): "/swapbench/workers/__init__.py",
            str(workers / "deferred.py"): "/swapbench/workers/deferred.py",
            str(workers / "wire.py"): "/swapbench/workers/wire.py",
            str(workers / "vmm.py"): "/swapbench/workers/vmm.py",
            str(workers / "host"): "/swapbench/workers/host",
        }
        threads = str(self.threads)
        calls = self.profiled_calls
        program = ("workers.host.profiled", "3", str(calls)) if calls else ("workers.host", "3")
        if self.counted_by is not None:
            program = ("workers.host.counted", "3", str(self.counted_by / "ncu"))
            files[str(self.counted_by)] = str(self.counted_by)
        own = {"/profile": PROFILE_BYTES} if calls or self.counted_by is not None else {}
        on_device = self.device == "cuda"
        given = accelerator.current() if on_device else None
        return Confinement(
            argv=(sys.executable, "-B", "-s", "-P", "-m", *program),
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
            }
            | (given.variables() if given is not None else {}),
            readonly=dict(view.readonly) | files,
            symlinks=view.symlinks,
            scratch={"/tmp": DEVICE_SCRATCH_BYTES if on_device else 256 * MIB} | own,
            scratch_inodes=DEVICE_INODES if on_device else 16384,
            devices=given.nodes() if given is not None else (),
            socket=fd,
            socket_number=3,
            working_directory="/swapbench",
            limits=Limits(
                memory_bytes=DEVICE_MEMORY_BYTES if on_device else self.memory_bytes,
                pids=DEVICE_PIDS if on_device else 64 + 8 * self.threads,
                cpus=cpus,
            ),
            loopback=self.counted_by is not None,
            slot=slot,
        )

    @property
    def processors(self) -> frozenset[int]:
        """All that judge and hosts run on."""
        return frozenset(self._processors or os.sched_getaffinity(0))

    def _cpus(self) -> frozenset[int] | None:
        """The processors a host is bound to: the last ones, so that the judge and the rest of the machine keep the first."""
        mine = by_core(self._processors or os.sched_getaffinity(0))
        if len(mine) <= self.threads:
            return None
        return frozenset(mine[-self.threads :])

    def _shared_out(self) -> tuple[frozenset[int] | None, frozenset[int] | None]:
        spare = self._spare_cpus()
        return (None, None) if spare is None else shared_out(spare)

    def _spare_cpus(self) -> frozenset[int] | None:
        """The processors that no host is bound to; None where there are none to spare."""
        bound = self._cpus()
        return None if bound is None else frozenset(self._processors or os.sched_getaffinity(0)) - bound


def by_core(processors: Iterable[int]) -> list[int]:
    """Processors so that those of one core stand together, as parts of the list should not share any."""
    return sorted(processors, key=lambda cpu: (min({cpu, *_siblings(cpu)}), cpu))


def shared_out(spare: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Of the processors that the host being timed leaves: those of the judge, and those that the next host is started on; the same where there are few."""
    if len(spare) < LEAST_APART:
        return spare, spare
    ordered = by_core(spare)
    return frozenset(ordered[: len(ordered) // 2]), frozenset(ordered[len(ordered) // 2 :])


def share_of(processors: Sequence[int], slot: int, accelerators: int) -> Sequence[int]:
    """The part of the processors that attempts on one of a machine's accelerators keep to: neighbours, all parts of one size."""
    each = len(processors) // max(1, accelerators)
    if each < LEAST_SHARE or not 0 <= slot < accelerators:
        return processors
    return processors[slot * each : (slot + 1) * each]


def keep_to_share(slot: int) -> None:
    """Has this process, and hosts with it, leave the other accelerators' attempts their processors: two hosts on one would disturb each other.

    Whoever was bound to some processors already is left where it is.
    """
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) == os.cpu_count():
        _bind_this_process(share_of(by_core(mine), slot, accelerator.count()))


def _without_siblings(spare: frozenset[int] | None, bound: frozenset[int] | None) -> frozenset[int]:
    """Of the spare processors those that share a core with none of the bound ones."""
    return frozenset(spare or ()) - {sibling for cpu in bound or () for sibling in _siblings(cpu)}


@functools.cache
def _siblings(cpu: int) -> frozenset[int]:
    """The processors that are one core with `cpu`, itself among them; none where the kernel does not say."""
    found: set[int] = set()
    with suppress(OSError, ValueError):
        listed = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        for part in listed.strip().split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _bind_this_process(cpus: Iterable[int]) -> None:
    """Lets every thread of this process run on these processors only; those that begin later inherit it."""
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task), cpus)
