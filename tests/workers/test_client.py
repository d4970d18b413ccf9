"""The judge's side of a host, against the real loop of a host that runs in a thread."""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from engine.slots.kind import Call, Held, Preparation, TensorSpec
from workers.host.__main__ import serve
from workers.judge.buffers import Pack
from workers.judge.client import HostClient


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
