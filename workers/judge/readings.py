"""Readings of the machine from outside the host, for telling whether something else disturbed a measurement."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workers.statistics import Observation

_TICK = os.sysconf("SC_CLK_TCK")


class Watched(Protocol):
    """The counters of a confined process that a reading takes."""

    def cpu_seconds(self) -> float: ...
    def run_delay_seconds(self) -> float: ...


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in seconds."""

    wall: float
    busy: float
    steal: float
    own: float
    host_cpu: float
    host_delay: float


def read(process: Watched) -> Reading:
    """The counters now: /proc/stat (proc(5)), this process's and the host's."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return Reading(
        wall=time.monotonic(),
        busy=(user + nice + system + irq + softirq) / _TICK,
        steal=steal / _TICK,
        own=time.process_time(),
        host_cpu=process.cpu_seconds(),
        host_delay=process.run_delay_seconds(),
    )


def between(start: Reading, end: Reading) -> Observation:
    """What happened between two readings of the same host."""
    own = end.own - start.own
    host = end.host_cpu - start.host_cpu
    return Observation(
        wall_seconds=max(end.wall - start.wall, 1e-9),
        processors=os.cpu_count() or 1,
        cpu_seconds=host,
        run_delay_seconds=max(0.0, end.host_delay - start.host_delay),
        steal_seconds=max(0.0, end.steal - start.steal),
        other_cpu_seconds=max(0.0, end.busy - start.busy - own - host),
    )
