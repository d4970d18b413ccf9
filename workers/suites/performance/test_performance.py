"""One test for each turn of a process and each case in it."""

from typing import Any

from engine.slots.kind import Case
from workers.suites.performance.bench import PairBench, Turn


def test_speed(benchmark: Any, bench: PairBench, turn: Turn, case: Case) -> None:
    """Times the case in the turn's process; every timed call is checked."""
    bench.measure(benchmark, turn, case)
