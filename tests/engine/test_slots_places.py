"""Where a call's outputs lie: row-wise modules are told, those of the engine write there, and whoever does not is copied."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.inprocess import judge_case
from engine.slots.kind import CallFailed, Environment, kind_named
from engine.slots.kinds.adapter import ROW_WISE
from engine.slots.places import APART, put, takes_out
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "name"), MODULES)
def test_modules_of_the_engine_leave_no_copy_that_another_could_leave_out(
    kind: str, name: str, dtype: torch.dtype
) -> None:
    implementation = load(kind, name)
    outs = [torch.full((3, 16), float("nan"), dtype=dtype) for _ in range(2)]
    if kind == "activation":
        assert implementation().forward(torch.randn(3, 32).to(dtype), out=outs[0]).data_ptr() == outs[0].data_ptr()
        return
    x, residual, weight = torch.randn(3, 16).to(dtype), torch.randn(3, 16).to(dtype), torch.rand(16).to(dtype)
    given = implementation(1e-5).forward(x, residual, weight, out=tuple(outs))
    assert [value.data_ptr() for value in given] == [value.data_ptr() for value in outs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["generic", "cpu_x86", "cpu_arm"])
@pytest.mark.parametrize("operator", ROW_WISE)
def test_operators_of_the_engine_leave_no_copy_either(name: str, operator: str, dtype: torch.dtype) -> None:
    function = load("adapter", name)().operators()[operator]
    x = torch.randn(3, 32).to(dtype)
    more = (torch.rand(32).to(dtype), 1e-5) if operator == "rms_norm" else ()
    wanted = function(x, *more)
    out = torch.full_like(wanted, float("nan"))
    given = function(x, *more, out=out)
    assert given.data_ptr() == out.data_ptr()
    assert torch.equal(given, wanted)


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


@pytest.mark.parametrize(("buffers", "shift"), [(1, 0), (2, 0), (1, 1)])
def test_few_buffers_for_many_results_are_refused(buffers: int, shift: int) -> None:
    """Later calls leave what was returned as it is: all of it, wherever the next one begins."""

    class Sharing(Silent):
        def __init__(self) -> None:
            self.buffers = [torch.empty(64) for _ in range(buffers)]
            self.calls = 0

        def forward(self, gate_up: Tensor) -> Tensor:
            self.calls += 1
            begin = self.calls * shift
            place = self.buffers[self.calls % buffers][begin : begin + 32].view(2, 16)
            return place.copy_(Silent().forward(gate_up))

    driver: Any = kind_named("activation").driver(Sharing)
    with pytest.raises(SlotError, match="'y' lies where an earlier result does"):
        driver.run("swiglu", {"repeat": 3}, {"gate_up": torch.randn(6, 32)}, {})


def test_a_product_does_not_lie_where_the_one_before_does() -> None:
    class Shared:
        def __init__(self) -> None:
            self.buffer = torch.empty(2, 4)

        def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
            return torch.mm(x, packed["w"].t(), out=self.buffer)

    driver: Any = kind_named("quantization").driver(Shared)
    driver.into = {"y": torch.empty(4, 4)}
    held = {f"{number}/w": torch.randn(4, 8) for number in range(2)}
    with pytest.raises(SlotError, match="`linear` returned lies where an earlier result does"):
        driver.run("linear", {"of": "", "weights": 2}, {"x": torch.randn(4, 8)}, held)


class OnlyWithAPlace(Silent):
    """One that computes where it is given a place, as the judge's hosts do."""

    def forward(self, gate_up: Tensor, out: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if out is None:
            return torch.zeros(len(gate_up), gate_up.shape[1] // 2)
        return out.copy_(super().forward(gate_up))


def test_it_is_judged_without_a_place_too_as_the_engine_calls_it() -> None:
    kind, head = kind_named("activation"), header("activation")
    case = next(iter(kind.cases("unit", head, Environment("x", "cpu", ("float32",)))))
    assert judge_case(kind, head, case, Silent, Source(b"places")) is None
    found = judge_case(kind, head, case, OnlyWithAPlace, Source(b"places"))
    assert found is not None
    assert "zero everywhere" in found.sentence
    # Nothing else of the call is another.
    call = kind.draw(case, {}, Source(b"places"))
    with_place, without = kind.ways(call)
    assert with_place is call
    assert without.params == call.params | {APART: True}
    assert without.inputs is call.inputs


@pytest.mark.parametrize("kind_name", ["normalization", "activation"])
def test_one_buffer_for_all_results_is_refused_where_no_place_is_offered_too(kind_name: str) -> None:
    """A model normalizes queries, and then keys."""
    memory = torch.empty(1 << 16)

    class OneBuffer:
        def __init__(self, eps: float = 0.0) -> None:
            self.plain = load(kind_name, "plain")(*([eps] if kind_name == "normalization" else []))

        def forward(self, *given: Any, out: Any = None) -> Any:
            if out is not None:
                return self.plain.forward(*given, out=out)
            result = self.plain.forward(*given)
            first = result[0] if kind_name == "normalization" else result
            kept = memory[: first.numel()].view(first.shape).copy_(first)
            return (kept, result[1]) if kind_name == "normalization" else kept

    kind, head = kind_named(kind_name), header(kind_name)
    refused = []
    for case in kind.cases("unit", head, Environment("x", "cpu", ("float32",))):
        try:
            judge_case(kind, head, case, OneBuffer, Source(b"places"), calls=1)
        except (CallFailed, SlotError) as error:
            refused.append((case["repeat"], "lies where an earlier result does" in str(error)))
    assert refused == [(3, True)]


def test_operators_are_called_in_both_ways_where_they_are_offered_a_place() -> None:
    kind, head = kind_named("adapter"), header("adapter")
    for case in kind.cases("unit", head, Environment("x", "cpu", ("float32",))):
        call = kind.draw(case, kind.held(case, Source(b"places")), Source(b"places"))
        assert len(kind.ways(call)) == (2 if case["operator"] in ROW_WISE else 1)


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


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda place: place.t().clone(),
        # In the place itself, in another order, or a row further down.
        lambda place: place.t(),
        lambda place: place.roll(1, 0),
        lambda place: place.flatten().as_strided((3, 3), (1, 3)),
    ],
)
def test_what_lies_in_another_order_is_copied_into_that_of_the_place(elsewhere: Callable[[Tensor], Tensor]) -> None:
    place = torch.arange(9.0).view(3, 3)
    value = elsewhere(place)
    wanted = value.tolist()
    assert put("'y'", value, place).tolist() == wanted


def test_a_part_of_the_place_that_is_moved_is_copied() -> None:
    memory = torch.arange(12.0)
    assert (
        put("'y'", memory[3:].view(3, 3), memory[:9].view(3, 3)).tolist() == torch.arange(3.0, 12.0).view(3, 3).tolist()
    )


def test_one_row_lies_where_it_is_whatever_a_step_to_the_next_would_be() -> None:
    place = torch.arange(4.0).view(1, 4)
    same = place.as_strided((1, 4), (1, 1))
    assert put("'y'", same, place).data_ptr() == place.data_ptr()
    assert place.tolist() == [[0, 1, 2, 3]]


def test_whether_a_function_takes_a_place_is_read_off_it() -> None:
    assert takes_out(Placing.forward)
    assert not takes_out(Silent.forward)

    @functools.wraps(Placing.forward)
    def compiled(*arguments: Any, **keywords: Any) -> Tensor:
        return Placing.forward(*arguments, **keywords)

    assert takes_out(compiled)
    assert not takes_out(functional.linear)
