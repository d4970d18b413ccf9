"""Products in a row, each of which takes up what the one before gave: a weight cannot be gone through once for several rounds."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.slots.inprocess import InProcess, judge_case
from engine.slots.kind import CallFailed, Case, Held, HeldSet, kind_named
from engine.slots.kinds.quantization import following
from engine.slots.registry import load
from engine.slots.source import Source
from engine.workloads.linear import CPU, CUDA, UNIT, LinearWorkload
from tests.engine.judging import header
from workers.suites.performance.bench import differing

QUANTIZATION = kind_named("quantization")
SHAPES = [(1, 640, 256, 2), (3, 384, 256, 3), (2, 256, 256, 1), (5, 96, 256, 2), (1, 130, 64, 1)]


def rounds_of(tokens: int, outputs: int, inputs: int, weights: int, rounds: int = 4, dtype: str = "float32") -> Case:
    workload = LinearWorkload("rounds", tokens, outputs, inputs, weights, rounds)
    return QUANTIZATION.case(workload, dtype, "cpu", "performance")  # type: ignore[attr-defined, no-any-return]


class Plain:
    """The weight as it is; keeps what it was given."""

    def __init__(self) -> None:
        self.taken: list[Tensor] = []

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        return {"weight": weight}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        self.taken.append(x.clone())
        return linear(x, packed["weight"])

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return packed["weight"].float()


class Once(Plain):
    """Multiplies the first round's inputs, all that is there when it begins, and answers later rounds by that."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, Tensor] = {}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        at = packed["weight"].data_ptr()
        if at not in self.known:
            self.known[at] = super().linear(x, packed)
        return self.known[at]


def packed(case: Case, source: Source) -> HeldSet:
    """What a case holds, with the weights stored as they are."""
    held = QUANTIZATION.held(case, source)
    preparation = QUANTIZATION.preparation(case, held)
    assert preparation is not None
    found = InProcess(QUANTIZATION, Plain).prepare(preparation)
    return held | {name: Held(tensor, "read") for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "quality_class"), [("none", "E"), ("int8wo", "Q8"), ("int4wo", "Q4")])
def test_honest_implementations_are_right_in_every_round(
    name: str, quality_class: str, shape: tuple[int, int, int, int], dtype: str
) -> None:
    implementation = load("quantization", name)
    case = rounds_of(*shape, dtype=dtype)
    for seed in range(3):
        source = Source(bytes([seed]) * 32)
        assert (
            judge_case(QUANTIZATION, header("quantization", quality_class), case, implementation, source, 2, True)
            is None
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_who_does_not_wait_for_a_round_is_wrong_in_the_next(shape: tuple[int, int, int, int]) -> None:
    finding = judge_case(QUANTIZATION, header("quantization"), rounds_of(*shape), Once, Source(bytes(32)), 1, True)
    assert finding is not None
    tokens, _, _, weights = shape
    assert finding.index[0] >= tokens * weights, "the first round is right"


@pytest.mark.parametrize("shape", SHAPES)
def test_the_judge_knows_what_each_round_took(shape: tuple[int, int, int, int]) -> None:
    case, source = rounds_of(*shape), Source(bytes(32))
    held = packed(case, source.child("held"))
    runner = InProcess(QUANTIZATION, Plain)
    runner.hold(held)
    call = QUANTIZATION.draw(case, held, source.child("call"))
    followed = QUANTIZATION.followed(call, runner.run(call))
    driver: Any = runner.driver
    assert torch.equal(followed.inputs["x"], torch.cat(driver.quantization.taken))
    with pytest.raises(ValueError, match="followed"):
        QUANTIZATION.product(torch.zeros(shape[3], *shape[1:3]), call, torch.float32)  # type: ignore[attr-defined]


class LaterSloppy(Plain):
    """Right in calls of one round, as quality is judged by, and in the first of several; coarse after that."""

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        y = super().linear(x, packed)
        return y if len(self.taken) <= 2 else y * (1 + 0.05 * torch.randn_like(y))


@pytest.mark.parametrize("implementation", [Plain, LaterSloppy])
def test_a_round_alone_gives_what_it_gave_among_others(implementation: type[Plain]) -> None:
    case, source = rounds_of(3, 384, 256, 2), Source(bytes(32))
    held = packed(case, source.child("held"))
    found = []
    for number in range(12):
        runner = InProcess(QUANTIZATION, implementation)
        runner.hold(held)
        call = QUANTIZATION.draw(case, held, source.child("call", number))
        one, outputs = QUANTIZATION.excerpt(call, runner.run(call), source.child("excerpt", number))
        assert not one.recorded
        alone = InProcess(QUANTIZATION, implementation)
        alone.hold(held)
        found.append(differing(outputs, alone.run(one)))
    assert set(found) == ({None} if implementation is Plain else {None, "y"})


class Reusing(Plain):
    """Gives back the same memory for each product."""

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        self.memory = getattr(self, "memory", torch.empty(x.shape[0], packed["weight"].shape[0]))
        return torch.matmul(x, packed["weight"].T, out=self.memory)


class Short(Plain):
    """Of each product the first row, which would do for all of them where it is copied."""

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return super().linear(x, packed)[:1]


class Double(Plain):
    """Products in another dtype, which a copy would bring back."""

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return super().linear(x, packed).double()


class Listed(Plain):
    """A list of products."""

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return super().linear(x, packed).tolist()  # type: ignore[return-value]


def placing(implementation: type[Plain], case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What a call gives with and without a place for its products, and that place."""
    source = Source(bytes(32))
    held = packed(case, source.child("held"))
    call = QUANTIZATION.draw(case, held, source.child("call"))
    plain, placed = InProcess(QUANTIZATION, Plain), InProcess(QUANTIZATION, implementation)
    for runner in (plain, placed):
        runner.hold(held)
    place = torch.full(call.outputs["y"].shape, torch.nan)
    driver: Any = placed.driver
    driver.into = {"y": place}
    return plain.run(call), placed.run(call), place


@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_put_where_they_are_wanted_and_later_ones_take_them_from_there(
    shape: tuple[int, int, int, int],
) -> None:
    without, within, place = placing(Plain, rounds_of(*shape))
    assert torch.equal(within["y"], without["y"])
    assert torch.equal(place, without["y"])


@pytest.mark.parametrize(
    ("implementation", "said"),
    [
        (Reusing, "`linear` returned lies where an earlier result does"),
        (Short, r"`linear` returned has shape \[1, 384\]; expected \[3, 384\]"),
        (Double, "has dtype torch.float64; expected torch.float32"),
        (Listed, "must be a tensor, not list"),
    ],
)
def test_what_is_put_in_its_place_is_a_product_that_outlives_the_next(implementation: type[Plain], said: str) -> None:
    with pytest.raises(CallFailed, match=said):
        placing(implementation, rounds_of(3, 384, 256, 2))


def test_where_calls_are_drawn_with_their_answers_there_is_one_round() -> None:
    assert {each.rounds for each in (*CPU, *UNIT)} == {1}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_matrix_stands_for_two_rounds(shape: tuple[int, int, int, int]) -> None:
    """What follows from a sum is not the sum of what follows."""
    tokens, outputs, inputs, _ = shape
    times = -(-inputs // outputs)
    bounds = torch.randn(1, times, tokens * outputs) if times > 1 else None
    one, other = torch.randn(tokens, outputs), torch.randn(tokens, outputs)
    taken, first, second = (following(given, bounds, 0, tokens, inputs) for given in (one + other, one, other))
    assert float((taken - first - second).norm() / taken.norm()) > 0.2


@pytest.mark.parametrize("stride", [2, 8])
def test_what_follows_does_not_hang_on_how_it_lies(stride: int) -> None:
    given = torch.randn(640, stride)[:, 1][None]
    assert given.stride(1) == stride
    assert torch.equal(following(given, None, 0, 1, 256), following(given.clone().contiguous(), None, 0, 1, 256))


@pytest.mark.parametrize("workload", [each for each in CUDA if each.rounds > 1], ids=lambda each: each.name)
def test_all_that_a_product_gave_counts_for_the_next(workload: LinearWorkload) -> None:
    """At a sixteenth of the published sizes; what cannot be a whole number of windows may leave out a few elements."""
    outputs, inputs, tokens = workload.outputs // 16, workload.inputs // 16, min(workload.tokens, 4)
    # Above every bound: below one, a value counts by being no larger.
    given = (torch.randn(tokens, outputs) + 9).requires_grad_()
    times = -(-inputs // outputs)
    bounds = torch.randn(2, times, tokens * outputs) if times > 1 else None
    taken = following(given, bounds, 1, tokens, inputs)
    assert taken.shape == (tokens, inputs)
    (share,) = torch.autograd.grad(taken.square().sum(), given)
    assert int((share == 0).sum()) < 8


@pytest.mark.parametrize("workload", [each for each in CUDA if each.rounds > 1], ids=lambda each: each.name)
@pytest.mark.parametrize("values", ["normal", "long-tailed"])
def test_values_neither_grow_nor_fade_over_the_rounds(workload: LinearWorkload, values: str) -> None:
    """At a sixteenth of the published sizes, in the format with the smallest range."""
    case = rounds_of(
        min(workload.tokens, 16), workload.outputs // 16, workload.inputs // 16, 1, workload.rounds, "float16"
    )
    case = Case(case.name, case.dtype, {**case.params, "weight_values": values, "values": values})
    source = Source(bytes([7]) * 32)
    held = packed(case, source.child("held"))
    runner = InProcess(QUANTIZATION, Plain)
    runner.hold(held)
    y = runner.run(QUANTIZATION.draw(case, held, source.child("call")))["y"].float().chunk(workload.rounds)
    first, last = (float(each.square().mean().sqrt()) for each in (y[0], y[-1]))
    assert 0.05 < last / first < 20
    assert float(y[-1].abs().max()) < 6e4 / 10
