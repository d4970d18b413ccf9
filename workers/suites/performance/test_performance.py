"""One test for each process and case of a pair."""

from typing import Any

from engine.slots.kind import Case
from workers.suites.performance.bench import PairBench, Process


def test_speed(benchmark: Any, bench: PairBench, process: Process, case: Case) -> None:
    """Times the case in the process; every timed call is checked."""
    bench.measure(benchmark, process, case)
