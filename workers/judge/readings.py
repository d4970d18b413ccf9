"""Readings of the machine from outside the host, for telling whether something else disturbed a measurement."""

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.judge import accelerator
from workers.sandbox import processes
from workers.statistics import Observation

_TICK = os.sysconf("SC_CLK_TCK")


class Watched(Protocol):
    """The counters of a confined process that a reading takes."""

    def cpu_seconds(self) -> float: ...
    def run_delay_seconds(self) -> float: ...


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in seconds, and the accelerator where there is one."""

    wall: float
    busy: float
    steal: float
    own: float
    host_cpu: float
    host_delay: float
    sight: accelerator.Sight | None = None
    strangers: int = 0
    """Processes on the accelerator that are neither the judge's nor the host's."""
    processors: int = 1
    """How many the counters are of."""


def read(*hosts: Watched, cpus: Collection[int] = ()) -> Reading:
    """The counters now: /proc/stat (proc(5)) of these processors, or of all, this process's and those of the hosts together."""
    lines = {name: counts for name, *counts in (line.split() for line in Path("/proc/stat").read_text().splitlines())}
    own = [lines[f"cpu{cpu}"] for cpu in cpus if f"cpu{cpu}" in lines] or [lines["cpu"]]
    user, nice, system, _, _, irq, softirq, steal = (
        sum(map(int, column)) for column in list(zip(*own, strict=False))[:8]
    )
    given = accelerator.current()
    sight = given.look() if given is not None else None
    ours = [pid for host in hosts for pid in processes.tree(getattr(host, "pid", 0))] if sight is not None else []
    return Reading(
        wall=time.monotonic(),
        busy=(user + nice + system + irq + softirq) / _TICK,
        steal=steal / _TICK,
        own=time.process_time(),
        host_cpu=sum(host.cpu_seconds() for host in hosts),
        host_delay=sum(host.run_delay_seconds() for host in hosts),
        sight=sight,
        strangers=sight.others(ours) if sight is not None else 0,
        processors=len(own) if own[0] is not lines["cpu"] else os.cpu_count() or 1,
    )


def between(start: Reading, end: Reading, ahead_seconds: float = 0.0) -> Observation:
    """What happened between two readings of the same hosts.

    `ahead_seconds`: processor time of a host that was being started meanwhile, which is ours.
    """
    own = end.own - start.own
    host = end.host_cpu - start.host_cpu
    return Observation(
        wall_seconds=max(end.wall - start.wall, 1e-9),
        processors=end.processors,
        cpu_seconds=host,
        run_delay_seconds=max(0.0, end.host_delay - start.host_delay),
        steal_seconds=max(0.0, end.steal - start.steal),
        other_cpu_seconds=max(0.0, end.busy - start.busy - own - host - ahead_seconds),
        other_accelerator_processes=max(start.strangers, end.strangers),
        throttled=end.sight.held_down if end.sight is not None else (),
    )
