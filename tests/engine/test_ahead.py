"""Functions compiled ahead of time: what is put together again, what is served by something else."""

import logging
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine import ahead
from engine.ahead import Ahead, taken_apart
from engine.models.transformer import Linear


def double(x: Tensor, matrix: Linear) -> Tensor:
    return matrix(x)


def matrix(rows: int = 4, **fields: Any) -> Linear:
    return Linear(f"a matrix of {rows}", {"weight": torch.randn(rows, 3)}, **fields)


class Compiler:
    """Stands in for AOTInductor, which takes half a minute: runs the module that was to be compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[tuple[Tensor, ...]] = []
        monkeypatch.setattr(torch.export, "export", self.export)
        monkeypatch.setattr(ahead, "packaged", lambda program, samples: program)
        monkeypatch.setattr(torch._inductor, "aoti_load_package", self.load)

    def export(self, module: Any, samples: tuple[Tensor, ...]) -> Any:
        self.samples.append(samples)
        module(*samples)
        return module

    def load(self, module: Any) -> Any:
        samples = self.samples[-1]

        def boxed_run(tensors: list[Tensor]) -> list[Tensor]:
            assert all(tensor.is_contiguous() for tensor in tensors)
            assert [t.shape for t in tensors] == [s.shape for s in samples], "it was compiled for other shapes"
            assert [t.dtype for t in tensors] == [s.dtype for s in samples]
            found = module(*tensors)
            return list(found) if isinstance(found, tuple) else [found]

        return SimpleNamespace(loader=SimpleNamespace(boxed_run=boxed_run))


def test_an_object_is_made_again_with_other_tensors() -> None:
    linear = matrix(bias=torch.ones(4))
    apart = taken_apart(linear)
    assert [tensor.shape for tensor in apart.tensors] == [(4, 3), (4,)]
    other = [torch.zeros(4, 3), torch.full((4,), 2.0)]
    made = apart.together(iter(other))
    assert isinstance(made, Linear)
    assert made.packed["weight"] is other[0]
    assert made.bias is other[1]
    assert made.scheme is linear.scheme
    assert taken_apart(made).structure == apart.structure
    assert taken_apart(matrix()).structure != apart.structure, "without a bias it is another function"


def test_matrices_alike_share_a_function_and_others_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    function = Ahead(double)
    x = torch.randn(1, 3)
    for linear in (matrix(), matrix(), matrix()):
        assert torch.equal(function(x, linear), linear(x))
        assert torch.equal(function(2 * x, linear), linear(2 * x))
    assert len(compiler.samples) == 1
    wide = matrix(8)
    assert torch.equal(function(x, wide), wide(x))
    two = torch.randn(2, 3)
    assert torch.equal(function(two, wide), wide(two))
    assert len(compiler.samples) == 3, "for other weights, and for another number of tokens"
    assert compiler.samples[-1][0].shape == (2, 3)


def test_tensors_arrive_as_they_were_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    function, linear = Ahead(double), matrix()
    turned = torch.randn(3, 2).t()
    assert torch.allclose(function(turned, linear), linear(turned))
    linear.packed["weight"] = linear.packed["weight"].double()
    wide = replace(linear)
    assert torch.allclose(function(turned.double(), wide), wide(turned.double()))
    assert len(compiler.samples) == 2, "another dtype is another function"


def test_what_cannot_be_exported_is_served_as_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    def unpredictable(x: Tensor, linear: Linear) -> Tensor:
        return linear(x) if x.sum().item() > 0 else -linear(x)

    function, linear = Ahead(unpredictable), matrix()
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for x in (torch.ones(1, 3), -torch.ones(1, 3)):
            assert torch.equal(function(x, linear), unpredictable(x, linear))
    assert caplog.text.count("unpredictable is not compiled ahead of time") == 1, "it is tried once"


@dataclass
class Signed:
    """A scheme whose text decides what it does."""

    mode: str

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        y = x @ packed["weight"].t()
        return y if self.mode == "as it is" else -y


def test_what_a_scheme_says_of_itself_belongs_to_the_structure_and_a_name_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = Compiler(monkeypatch)
    function, x = Ahead(double), torch.randn(1, 3)
    for mode in ("as it is", "turned", "as it is"):
        linear = replace(matrix(scheme=Signed(mode)), name=f"another name in {mode}")
        assert torch.equal(function(x, linear), linear(x))
    assert len(compiler.samples) == 2


class Keeping:
    """A scheme that keeps a buffer, and counts."""

    def __init__(self) -> None:
        self.room: Tensor | None = None
        self.seen: dict[str, Tensor] = {}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        if self.room is None:
            self.room = torch.empty_like(x)
        self.seen["x"] = x
        return self.room.copy_(x) @ packed["weight"].t()


def test_exporting_leaves_nothing_with_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "packaged", pytest.fail)
    scheme, x = Keeping(), torch.randn(1, 3)
    linear = matrix(scheme=scheme)
    assert Ahead(double)._prepare((x, linear)).run is None
    assert scheme.room is None
    assert not scheme.seen
    assert torch.equal(linear(x), x @ linear.packed["weight"].t())


def test_another_number_of_threads_is_another_function(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    function, linear, x = Ahead(double), matrix(), torch.randn(1, 3)
    function(x, linear)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        function(x, linear)
    finally:
        torch.set_num_threads(threads)
    assert len(compiler.samples) == 2
