"""Host and judge are put where nobody else uses the other half of their core."""

import os
import threading
from collections.abc import Callable

import pytest

from workers.judge import cores, hosts
from workers.judge.cores import Cores
from workers.judge.hosts import Hosts


def machine(slow: set[int], tried: list[int]) -> Callable[[int], float]:
    """A probe of processors of which `slow` share their core now."""

    def probe(cpu: int) -> float:
        tried.append(cpu)
        return 1.4e-4 if cpu in slow else 1.0e-4 * (1 + 0.01 * (cpu % 3))

    return probe


def test_a_free_processor_is_kept_and_another_one_found_when_it_is_no_longer() -> None:
    slow, tried = {0, 1, 3}, list[int]()
    found = Cores(machine(slow, tried))
    assert found.free(range(4)) == 2
    tried.clear()
    assert found.free(range(4), 2) == 2
    assert tried == [2]
    slow |= {2}
    slow -= {1}
    tried.clear()
    assert found.free(range(4), 2) == 1
    assert tried == [2, 0, 1]


def test_what_is_fast_is_learnt_from_all_before_one_is_taken_for_free() -> None:
    tried: list[int] = []
    found = Cores(machine({0, 1, 2, 3, 4, 5, 6}, tried))
    assert found.free(range(8)) == 7
    assert tried == list(range(8))


def test_where_none_is_free_the_fastest_one_is_taken() -> None:
    speeds = {0: 1.0, 1: 1.0, 2: 1.0}
    found = Cores(lambda cpu: speeds[cpu])
    found.free(speeds)
    speeds.update({0: 1.5, 1: 1.3, 2: 1.4})
    assert found.free(speeds, 2) == 1
    with pytest.raises(ValueError, match="empty"):
        found.free([])


def test_the_probe_works_on_the_processor_that_it_is_asked_for() -> None:
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            assert 0 < cores.probe(cpu) < 1
            assert os.sched_getaffinity(threading.get_native_id()) == {cpu}
    finally:
        os.sched_setaffinity(0, before)


class Bound:
    """A host's process and client, of which only where it may run counts, and where it may when it is woken up."""

    def __init__(self) -> None:
        self.to: list[set[int]] = []
        self.woken: list[set[int]] = []

    @property
    def process(self) -> "Bound":
        return self

    def bind(self, cpus: set[int]) -> None:
        self.to.append(set(cpus))

    def wake(self) -> None:
        self.woken.append(self.to[-1])


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A machine of sixteen processors; where this thread was put."""
    put: list[set[int]] = []
    monkeypatch.setattr(hosts, "_siblings", lambda cpu: frozenset({cpu, cpu ^ 1}))
    monkeypatch.setattr(hosts.os, "sched_setaffinity", lambda thread, cpus: put.append(set(cpus)))
    return put


def test_a_host_is_put_on_a_free_core_and_the_one_that_is_started_ahead_keeps_off_it(sixteen: list[set[int]]) -> None:
    found = Hosts("full", threads=4, device="cuda")
    found._processors = list(range(16))
    slow = {*range(16)} - {3, 8}
    found._cores = Cores(machine(slow, []))
    waiting, host = Bound(), Bound()
    found._ahead = [(None, waiting, None)]  # type: ignore[list-item]
    found.onto_free_cores(host)  # type: ignore[arg-type]
    # Judge: 0 to 5, started ahead: 6 to 11, host: 12 to 15; 2n and 2n + 1 are one core.
    assert host.to == [{8}, {8, 12, 13, 14, 15}]
    assert host.woken == [{8}]
    assert waiting.to == [{6, 7, 10, 11}]
    assert sixteen == [{3}]
    slow.add(8)
    slow.remove(14)
    found.onto_free_cores(host)  # type: ignore[arg-type]
    assert host.to[2:] == [{14}, {12, 13, 14, 15}]
    assert host.woken[1:] == [{14}]
    assert waiting.to[1:] == [{6, 7, 8, 9, 10, 11}]


def test_where_there_is_little_room_nothing_is_moved(sixteen: list[set[int]]) -> None:
    for processors in ([], [0, 1], [0, 1, 2, 3]):
        found = Hosts("full", threads=1, device="cuda")
        found._processors = processors
        host = Bound()
        found.onto_free_cores(host)  # type: ignore[arg-type]
        assert not host.to
        assert not sixteen
