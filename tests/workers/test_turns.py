"""The processes of a pair take turns: who is not up stands still, and both are asked for the same calls."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from workers.judge.client import HostClient, Tampered
from workers.suites.performance.bench import PairBench


@dataclass
class Host:
    """A process as the client sees it, whose processor time the test sets."""

    used: float = 0.0
    frozen: bool = False
    refuses: bool = False

    def cpu_seconds(self) -> float:
        return self.used

    def freeze(self) -> None:
        if self.refuses:
            raise TimeoutError("7 processes could not be stopped within 5 s")
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


@pytest.fixture
def client_of() -> Iterator[Callable[[Host], HostClient]]:
    """Makes clients of hosts that nobody serves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield lambda host: HostClient(host, ours)  # type: ignore[arg-type]


def test_a_host_that_stood_still_goes_on(client_of: Callable[[Host], HostClient]) -> None:
    host = Host(used=1.5)
    client = client_of(host)
    client.freeze()
    assert host.frozen
    client.thaw()
    assert not host.frozen


def test_a_host_that_worked_while_it_was_frozen_is_tampered_with(client_of: Callable[[Host], HostClient]) -> None:
    host = Host(used=1.5)
    client = client_of(host)
    client.freeze()
    host.used += 0.020
    with pytest.raises(Tampered, match="20 ms while it was not its turn"):
        client.thaw()


def test_freezing_again_does_not_forgive_what_was_done_meanwhile(client_of: Callable[[Host], HostClient]) -> None:
    host = Host()
    client = client_of(host)
    client.freeze()
    host.used += 0.020
    client.freeze()
    with pytest.raises(Tampered):
        client.thaw()


def test_a_host_that_cannot_be_held_is_tampered_with(client_of: Callable[[Host], HostClient]) -> None:
    with pytest.raises(Tampered, match="could not be held"):
        client_of(Host(refuses=True)).freeze()


@pytest.mark.parametrize(("order", "names"), [("AB", ["base", "head"]), ("BA", ["head", "base"])])
def test_the_coin_says_whose_calls_are_timed_first(order: str, names: list[str]) -> None:
    course = SimpleNamespace(published=["a", "b"])
    bench = PairBench(course, 3, order)  # type: ignore[arg-type]
    turns = bench.parameters()["turn"]
    assert [turn.side for turn in turns] == names
    assert [turn.name for turn in turns] == [f"pair03-{name}" for name in names]
