"""Noise as machines make it, to try the rule on: for its tests and for benchmarks/statistics_power.py."""

import math
from dataclasses import dataclass

import numpy as np

from workers.statistics.rule import LogRatios
from workers.statistics.signed_rank import Floats


@dataclass(frozen=True)
class Noise:
    """What disturbs the time of one case in one process; sizes as fractions of the time, mostly standard deviations.

    `process`: offset that a process keeps over all its cases (memory layout, placement). `case`: its own offset in each case, with the heavy tails
    of Student's t with 3 degrees of freedom. `drift`: change from the attempt's first process to its last. `wander`: a
    process-to-process random walk that forgets (AR(1), 0.9). `second`: how much slower the second process of a pair runs.
    `burst_share` of the time lies in bursts of on average `burst_length` cases, which slow by 5 to 40 per cent.
    """

    name: str
    process: float
    case: float
    drift: float = 0.0
    wander: float = 0.0
    second: float = 0.0
    burst_share: float = 0.0
    burst_length: float = 9.0

    def attempts(
        self, rng: np.random.Generator, attempts: int, pairs: int, cases: int, gain: float = 0.0
    ) -> list[LogRatios]:
        """That many attempts whose head is faster by the fraction `gain` in every case, with the judge's coin for each pair."""
        times = self._log_times(rng, attempts, 2 * pairs, cases).reshape(attempts, pairs, 2, cases)
        times[:, :, 1] += self.second
        coins = rng.choice([-1.0, 1.0], size=(attempts, pairs, 1))
        values = math.log1p(gain) + coins * (times[:, :, 0] - times[:, :, 1])
        names = tuple(f"case-{number}" for number in range(1, cases + 1))
        return [LogRatios(names, attempt) for attempt in values]

    def _log_times(self, rng: np.random.Generator, attempts: int, processes: int, cases: int) -> Floats:
        """[attempts, processes, cases], in the order of time."""
        shape = (attempts, processes, cases)
        times = self.process * rng.normal(size=(attempts, processes, 1))
        times = times + self.case / math.sqrt(3) * rng.standard_t(3, size=shape)
        times += self.drift * rng.normal(size=(attempts, 1, 1)) * np.linspace(0, 1, processes)[:, None]
        steps = rng.normal(size=(processes, attempts))
        level = steps[0]
        for process in range(processes):
            times[:, process] += self.wander * level[:, None]
            level = 0.9 * level + math.sqrt(1 - 0.9**2) * steps[process]
        if self.burst_share:
            times += self._bursts(rng, attempts, processes * cases).reshape(shape)
        return times

    def _bursts(self, rng: np.random.Generator, attempts: int, slots: int) -> Floats:
        """[attempts, slots]: a two-state Markov chain in time; each burst has a size of its own."""
        leave = 1 / self.burst_length
        enter = leave * self.burst_share / (1 - self.burst_share)
        inside = rng.random(attempts) < self.burst_share
        size = rng.uniform(0.05, 0.40, attempts)
        slowed = np.empty((attempts, slots))
        for slot in range(slots):
            slowed[:, slot] = np.where(inside, np.log1p(size), 0.0)
            turn = rng.random(attempts)
            begins = ~inside & (turn < enter)
            inside = np.where(inside, turn >= leave, begins)
            size = np.where(begins, rng.uniform(0.05, 0.40, attempts), size)
        return slowed


ACCELERATOR = Noise("accelerator", process=0.004, case=0.007, drift=0.01, wander=0.003, second=0.002)
QUIET_CORES = Noise("2 quiet cores", process=0.015, case=0.02, drift=0.03, wander=0.01, second=0.005)
SHARED_CORES = Noise(
    "2 shared cores", process=0.015, case=0.02, drift=0.03, wander=0.02, second=0.005, burst_share=0.06
)
BUSY_CORES = Noise("a busy neighbour", process=0.03, case=0.03, drift=0.05, wander=0.04, second=0.01, burst_share=0.3)
MACHINES = (ACCELERATOR, QUIET_CORES, SHARED_CORES, BUSY_CORES)
