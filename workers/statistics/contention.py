"""Whether something else disturbed a pair: decided from readings taken outside the host, so that head has no say in it.

Only what others did counts. Threads of the host that wait for one another are the module's own affair; if they counted, a slow
module could have its bad pairs thrown away by starving itself. And as the readings do not depend on which side the coin put
first, a repeat leaves the coins fair and the test exact. (There is one exception, once in an attempt: the first time that a process is seen
at work between calls its pair is repeated, too; see workers.judge.speed.)
"""

import msgspec

from workers.statistics.signed_rank import percent


class Observation(msgspec.Struct, frozen=True):
    """Readings over one timed stretch of a host; differences between its end and its start.

    All in seconds. `run_delay_seconds`: time that the host's threads were runnable but waited for a processor (schedstat's second field,
    Documentation/scheduler/sched-stats.rst). `steal_seconds`: time that the hypervisor gave to other machines, over all processors
    (/proc/stat). `other_cpu_seconds`: processor time of everything but the judge and the host. Of the accelerator:
    processes that are not ours, and whether a limit of power or heat, other than the trusted warm-up's, held the clock down.
    """

    wall_seconds: float
    processors: int
    cpu_seconds: float
    run_delay_seconds: float = 0.0
    steal_seconds: float = 0.0
    other_cpu_seconds: float = 0.0
    other_accelerator_processes: int = 0
    throttled: tuple[str, ...] = ()


class Thresholds(msgspec.Struct, frozen=True):
    """Shares above which a stretch counts as disturbed: run delay of the host's processor time, the others of all processor time."""

    run_delay: float = 0.05
    steal: float = 0.02
    other_cpu: float = 0.10


TAKING_TURNS = Thresholds(run_delay=0.5, steal=0.10, other_cpu=0.45)
"""For a pair whose processes take turns call by call: what disturbs it disturbs both sides alike, so only much of it costs the pair."""


def contended(observation: Observation, thresholds: Thresholds = Thresholds()) -> tuple[str, ...]:
    """The reasons why the stretch is worthless, for a person; empty if it is sound. Raises ValueError without wall time or processors."""
    if observation.wall_seconds <= 0 or observation.processors < 1:
        raise ValueError(
            f"A stretch of {observation.wall_seconds} s on {observation.processors} processors has no shares: read it over time."
        )
    capacity = observation.wall_seconds * observation.processors
    reasons = []
    steal = observation.steal_seconds / capacity
    if steal > thresholds.steal:
        reasons.append(f"the hypervisor took {percent(steal)} of the processors (limit {percent(thresholds.steal)})")
    other = observation.other_cpu_seconds / capacity
    if other > thresholds.other_cpu:
        reasons.append(
            f"other processes used {percent(other)} of the processors (limit {percent(thresholds.other_cpu)})"
        )
    by_others = min(observation.run_delay_seconds, observation.other_cpu_seconds + observation.steal_seconds)
    delay = by_others / observation.cpu_seconds if observation.cpu_seconds > 0 else 0.0
    if delay > thresholds.run_delay:
        reasons.append(
            f"the host waited {percent(delay)} of its own processor time for others (limit {percent(thresholds.run_delay)})"
        )
    if observation.other_accelerator_processes > 0:
        count = observation.other_accelerator_processes
        reasons.append(f"{count} other {'process' if count == 1 else 'processes'} used the accelerator")
    if observation.throttled:
        reasons.append(f"the accelerator was held down: {', '.join(observation.throttled)}")
    return tuple(reasons)


def may_repeat(repeats_of_pair: int, repeats_in_all: int, per_pair: int = 2, in_all: int = 12) -> bool:
    """Whether a disturbed pair is measured again; when not, it is kept: the tests stay valid, only the interval grows."""
    return repeats_of_pair < per_pair and repeats_in_all < in_all
