"""Which processors of a virtual machine have their core to themselves just now.

Work there has two speeds, 1.4 apart, for a tenth of a second or for some seconds (docs/h100). Most likely a virtual machine's processor is half of
a core, though it is shown as a whole one, and the other half works for somebody else or does not, which no counter inside tells. So this is found
out by working on each for a moment.
"""

import math
import os
import time
from collections.abc import Callable, Iterable

# Beyond the shortest time that was seen, by which a processor still counts as free.
FREE = 1.12
ROUNDS = 5
LOOPS = 4000


def _work() -> None:
    total = 0
    for number in range(LOOPS):
        total += number & 7


def probe(cpu: int) -> float:
    """Seconds of a little work in Python on `cpu`, the shortest of some rounds: a tenth of a millisecond each. This thread stays there."""
    os.sched_setaffinity(0, {cpu})
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        _work()
        times.append(time.perf_counter() - began)
    return min(times)


class Cores:
    """Finds free processors, and remembers how fast one is."""

    def __init__(self, probe: Callable[[int], float] = probe) -> None:
        self._probe = probe
        self._shortest = math.inf
        self._known: set[int] = set()

    def free(self, candidates: Iterable[int], first: int | None = None) -> int:
        """A processor whose core nobody else uses, of `candidates`, of which `first` is tried before the others; else the fastest of them.

        The calling thread is on some of them meanwhile and on any of them afterwards. Raises ValueError for no candidates.
        """
        left = sorted(set(candidates))
        if first in left:
            left.remove(first)
            left.insert(0, first)
        taken: dict[int, float] = {}
        for cpu in left:
            taken[cpu] = self._probe(cpu)
            self._shortest = min(self._shortest, taken[cpu])
            self._known.add(cpu)
            # The first time all are tried: what is fast has to be learnt.
            if self._known.issuperset(left) and taken[cpu] <= FREE * self._shortest:
                return cpu
        return min(taken, key=taken.__getitem__)
