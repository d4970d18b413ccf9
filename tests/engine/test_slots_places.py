"""Where a call's outputs lie: every module is told, those of the engine write there, and whoever does not is copied."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.kind import Environment, kind_named
from engine.slots.kinds.adapter import ROW_WISE
from engine.slots.places import put, takes_out
from engine.slots.registry import SlotError, load
from engine.slots.source import Source
from tests.engine.judging import header

MODULES = [(kind, name) for kind in ("normalization", "activation") for name in ("plain", "fused")]


def asked(kind: str, dtype: torch.dtype) -> tuple[str, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A call of two steps: operation, parameters, inputs and what is held."""
    if kind == "activation":
        return "swiglu", {"repeat": 2}, {"gate_up": torch.randn(6, 32).to(dtype)}, {}
    inputs = {name: torch.randn(6, 16).to(dtype) for name in ("x", "residual")}
    return "norm", {"repeat": 2, "eps": 1e-5, "weight": "weight"}, inputs, {"weight": torch.rand(2, 16).to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "name"), MODULES)
def test_what_a_module_gives_is_the_same_wherever_it_is_wanted(kind: str, name: str, dtype: torch.dtype) -> None:
    driver: Any = kind_named(kind).driver(load(kind, name))
    call = asked(kind, dtype)
    elsewhere = {name: value.clone() for name, value in driver.run(*call).items()}
    driver.into = {name: torch.full_like(value, float("nan")) for name, value in elsewhere.items()}
    given = driver.run(*call)
    for output, value in elsewhere.items():
        assert torch.equal(given[output], value)
        assert given[output].data_ptr() == driver.into[output].data_ptr()


@pytest.mark.parametrize(("kind", "name"), MODULES)
def test_modules_of_the_engine_leave_no_copy_that_another_could_leave_out(kind: str, name: str) -> None:
    implementation = load(kind, name)
    if kind == "activation":
        out = torch.empty(3, 16)
        assert implementation().forward(torch.randn(3, 32), out=out).data_ptr() == out.data_ptr()
        return
    x, residual, weight = torch.randn(3, 16), torch.randn(3, 16), torch.rand(16)
    outs = (torch.empty(3, 16), torch.empty(3, 16))
    given = implementation(1e-5).forward(x, residual, weight, out=outs)
    assert [value.data_ptr() for value in given] == [value.data_ptr() for value in outs]


@pytest.mark.parametrize("name", ["generic", "cpu_x86", "cpu_arm"])
@pytest.mark.parametrize("operator", ROW_WISE)
def test_operators_of_adapters_are_told_as_well(name: str, operator: str) -> None:
    driver: Any = kind_named("adapter").driver(load("adapter", name))
    params = {"operator": operator, "eps": 1e-5}
    call = ("operator", params, {"x": torch.randn(4, 32)}, {"weight": torch.rand(32)})
    elsewhere = driver.run(*call)["y"]
    driver.into = {"y": torch.full_like(elsewhere, float("nan"))}
    given = driver.run(*call)["y"]
    assert torch.equal(given, elsewhere)
    assert given.data_ptr() == driver.into["y"].data_ptr()


class Silent:
    """An activation that takes no place."""

    def forward(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up


class Placing(Silent):
    """One that takes a place, and does not use it."""

    def forward(self, gate_up: Tensor, out: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert out is not None
        return super().forward(gate_up)


@pytest.mark.parametrize("kind_of_module", [Silent, Placing])
def test_what_lies_elsewhere_is_copied(kind_of_module: type[Silent]) -> None:
    driver: Any = kind_named("activation").driver(kind_of_module)
    driver.into = {"y": torch.full((6, 16), float("nan"))}
    call = asked("activation", torch.float32)
    assert driver.run(*call)["y"] is driver.into["y"]
    assert torch.equal(driver.into["y"], Silent().forward(call[2]["gate_up"]))


@pytest.mark.parametrize("buffers", [1, 2])
def test_few_buffers_for_many_results_are_refused(buffers: int) -> None:
    """Later calls leave what was returned as it is."""

    class Sharing(Silent):
        def __init__(self) -> None:
            self.buffers = [torch.empty(2, 16) for _ in range(buffers)]
            self.calls = 0

        def forward(self, gate_up: Tensor) -> Tensor:
            self.calls += 1
            return self.buffers[self.calls % buffers].copy_(Silent().forward(gate_up))

    driver: Any = kind_named("activation").driver(Sharing)
    with pytest.raises(SlotError, match="'y' lies where an earlier result does"):
        driver.run("swiglu", {"repeat": 3}, {"gate_up": torch.randn(6, 32)}, {})


def test_without_a_residual_the_second_result_is_what_was_given() -> None:
    class Telling:
        def __init__(self, eps: float) -> None:
            self.places: list[Any] = []

        def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor, out: Any = None) -> tuple[Tensor, Tensor]:
            self.places.append(out)
            return out[0].copy_(x), x

    kind = kind_named("normalization")
    driver: Any = kind.driver(Telling)
    x, held = torch.randn(4, 16), {"weight": torch.rand(2, 16)}
    params = {"repeat": 2, "eps": 1e-5, "weight": "weight"}
    assert torch.equal(driver.run("norm", params, {"x": x}, held)["residual"], x)
    # Where it is timed nobody asks for a copy of it.
    driver.into = {"y": torch.empty(4, 16)}
    assert set(driver.run("norm", params, {"x": x}, held)) == {"y"}
    assert [place[1] for place in driver.instances[1e-5].places] == [None] * 4
    for device, sm in (("cpu", 0), ("cuda", 90)):
        environment = Environment("x", device, ("float32", "bfloat16"), sm=sm)  # type: ignore[arg-type]
        for case in kind.cases("performance", header("normalization"), environment):
            assert {"y", "residual"} - ({"residual"} if not case["residual"] else set()) == outputs_of(kind, case)


def outputs_of(kind: Any, case: Any) -> set[str]:
    """The outputs that a case's calls ask for, of few tokens and on the CPU."""
    small = replace(case, params={**case.params, "tokens": 3, "repeat": 1, "device": "cpu"})
    source = Source(b"places")
    return set(kind.draw(small, kind.held(small, source), source).outputs)


def test_what_is_not_two_tensors_is_refused() -> None:
    class One:
        def __init__(self, eps: float) -> None:
            self.eps = eps

        def forward(self, x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
            return x

    driver: Any = kind_named("normalization").driver(One)
    with pytest.raises(SlotError, match="must return two tensors"):
        driver.run(*asked("normalization", torch.float32))


def test_only_what_fits_is_put_in_its_place() -> None:
    place = torch.zeros(2, 3)
    for value, sentence in [
        (7, "'y' must be a tensor, not int"),
        (torch.zeros(3, 2), r"'y' has shape \[3, 2\]; expected \[2, 3\]"),
        (torch.zeros(2, 3, dtype=torch.float64), "'y' has dtype torch.float64; expected torch.float32"),
    ]:
        with pytest.raises(SlotError, match=sentence):
            put("'y'", value, place)  # type: ignore[arg-type]
    # What lies elsewhere in another order is copied into that of the place.
    square = torch.arange(9.0).view(3, 3)
    assert put("'y'", square.t().clone(), square).tolist() == torch.arange(9.0).view(3, 3).t().tolist()


def test_whether_a_function_takes_a_place_is_read_off_it() -> None:
    assert takes_out(Placing.forward)
    assert not takes_out(Silent.forward)

    @functools.wraps(Placing.forward)
    def compiled(*arguments: Any, **keywords: Any) -> Tensor:
        return Placing.forward(*arguments, **keywords)

    assert takes_out(compiled)
    assert not takes_out(functional.linear)
