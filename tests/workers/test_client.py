"""The judge's side of a host, against the real loop of a host that runs in a thread."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from engine.slots.kind import Call, Held, Preparation, TensorSpec
from workers import wire
from workers.host.__main__ import serve
from workers.judge import device
from workers.judge.buffers import Pack
from workers.judge.client import Answer, ContributedError, HostClient
from workers.judge.device import DeviceClient


class Tripling:
    """A driver that packs thrice the weight, and multiplies by what it packed."""

    def prepare(self, operation: str, params: object, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"packed": 3 * inputs["weight"]}

    def run(
        self, operation: str, params: object, inputs: dict[str, Tensor], held: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"y": inputs["x"] * held["packed"]}


class Process:
    """A host's process as the client sees it."""

    def cpu_seconds(self) -> float:
        return 0.0

    def run_delay_seconds(self) -> float:
        return 0.0

    def kill(self) -> None:
        pass


@pytest.fixture
def serving() -> Iterator[Callable[[type[HostClient]], HostClient]]:
    """Makes a client of a given type whose host has loaded its driver."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    host = threading.Thread(target=serve, args=(theirs, lambda _: (Tripling(), False)), daemon=True)
    host.start()

    def client(form: type[HostClient]) -> HostClient:
        made = form(Process(), ours)  # type: ignore[arg-type]
        made.load("nowhere.py", 1, 30)
        return made

    yield client
    ours.close()
    host.join(30)
    theirs.close()


def call_with(value: float) -> Call:
    x = torch.full((8,), value)
    return Call("multiply", {}, {"x": x}, {"y": TensorSpec.of(x)})


def test_what_was_first_used_while_a_model_ran_is_used_outside_of_it(
    serving: Callable[[type[HostClient]], HostClient],
) -> None:
    """A model runs in inference mode, whose tensors must not be written to outside of it: the memory that both share is no such tensor."""
    client = serving(HostClient)
    with torch.inference_mode():
        packed = client.prepare(Preparation("pack", {}, {"weight": torch.full((8,), 2.0)}))
        views = client.hold({"packed": Held(packed["packed"], "write")})
        assert client.run(call_with(1.0))["y"].tolist() == [6.0] * 8
    assert client.run(call_with(2.0))["y"].tolist() == [12.0] * 8
    views["packed"][0] = 1.0
    assert client.run(call_with(2.0))["y"].tolist() == [2.0] + [12.0] * 7


class LatePack(Pack):
    """Like memory of an accelerator: what is copied to it lies there when the device has come to it."""

    pending: ClassVar[list[tuple[Tensor, Tensor]]] = []

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], writable: bool = False) -> Pack:
        pack = cls({name: TensorSpec.of(tensor) for name, tensor in tensors.items()}, writable)
        cls.pending += [(pack.views[name], tensor) for name, tensor in tensors.items()]
        return pack


class LateClient(HostClient):
    pack_type = LatePack

    def _written(self) -> None:
        while LatePack.pending:
            view, tensor = LatePack.pending.pop()
            view.copy_(tensor)


def test_a_host_is_not_asked_to_pack_what_has_not_been_written_yet(
    serving: Callable[[type[HostClient]], HostClient],
) -> None:
    """It would pack zeros: what is written to an accelerator's memory is there a little later."""
    packed = serving(LateClient).prepare(Preparation("pack", {}, {"weight": torch.full((8,), 2.0)}))
    assert packed["packed"].tolist() == [6.0] * 8


def test_a_call_without_work_gives_back_what_it_was_given_and_meets_no_module(
    serving: Callable[[type[HostClient]], HostClient],
) -> None:
    client = serving(HostClient)
    x = torch.arange(64.0)
    assert torch.equal(client.run(Call(wire.NOTHING, {}, {"x": x}, {"x": TensorSpec.of(x)}))["x"], x)
    # The driver would have asked for what is held.
    with pytest.raises(ContributedError):
        client.run(Call("multiply", {}, {"x": x}, {"x": TensorSpec.of(x)}))


class Empty(DeviceClient):
    """A client on an accelerator whose calls take what the test says: seconds of the whole, and of the look at its end."""

    def __init__(self, taken: list[tuple[float, float]], beside_seconds: float) -> None:
        self.taken, self.beside_seconds = taken, beside_seconds

    def ready(self, call: Call) -> Call:  # type: ignore[override]
        assert call.operation == wire.NOTHING
        return call

    def timed(self, ready: object, keep: bool = True) -> Answer:
        seconds, self.last_look_seconds = self.taken.pop()
        return Answer(seconds - self.beside_seconds, {})


def test_an_empty_call_is_the_median_without_its_look_whatever_is_taken_off_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "empty_call", lambda: Call(wire.NOTHING, {}, {}, {}))
    for beside_seconds in (0.0, 0.0004):
        taken = [(0.0005, 0.0002)] * (device.EMPTY_CALLS - 1) + [(0.9, 0.0001)]
        assert Empty(taken, beside_seconds).empty_seconds() == pytest.approx(0.0003)
        assert not taken


def test_what_is_taken_off_is_bounded_by_the_machine_and_by_the_call() -> None:
    assert device.beside(0.0003, [0.0003, 0.0002, 0.0009], 0.010) == pytest.approx(0.0005)
    assert device.beside(0.0100, [0.0002], 0.020) == device.LONGEST_BESIDE_SECONDS
    assert device.beside(0.0003, [0.0002], 0.001) == pytest.approx(0.001 / 8)


def test_what_was_taken_off_can_be_put_back() -> None:
    for called in (0.0004, 0.001, 0.0012, 0.010):
        left = device.taken_off(called, 0.0009)
        assert left >= called / 4
        assert device.put_back(left, 0.0009) == pytest.approx(called)
    assert device.taken_off(0.010, 0.0009) == pytest.approx(0.0091)
