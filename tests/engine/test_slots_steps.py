"""Many steps in one message: each takes up what the one before gave, so that nobody can answer all of them at once."""

from dataclasses import replace
from math import gcd
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.caps import Caps
from engine.slots.inprocess import InProcess, judge_case
from engine.slots.kind import Call, Case, Environment, Held, HeldSet, kind_named
from engine.slots.registry import load
from engine.slots.source import Source
from engine.slots.steps import put_signs, signed_by, signed_by_many
from engine.workloads import attention, linear, pointwise
from tests.attacks.corpus import HERE
from tests.engine.judging import CPU, header
from workers.suites.performance.bench import differing

GPU = Environment("gpu-test", "cuda", ("bfloat16",), sm=90)
STEPS = 5
KINDS = {"attention": "sdpa", "normalization": "plain", "activation": "plain"}
ATTACKS = {"attention": "all_layers_at_once", "normalization": "all_rows_at_once"}
INPUTS = {"attention": "q", "normalization": "x", "activation": "gate_up"}
OUTPUTS = {"attention": "out", "normalization": "y", "activation": "y"}


def case_of(name: str, dtype: str = "float32", **params: Any) -> Case:
    """A small case of the performance suite whose calls have several steps."""
    kind = kind_named(name)
    if name == "attention":
        workload = attention.AttentionWorkload("steps", 4, 2, 32, 16, "1/90 1/20 1/75 1/40", layers=STEPS)
        caps = Caps.of(header(name))
        case = kind.case(workload, dtype, "cpu", "performance", caps, tight=dtype == "float32")  # type: ignore[attr-defined]
    else:
        (case, *_) = kind.cases("performance", header(name), CPU)
        case = Case("steps", dtype, {**case.params, "tokens": 12, "width": 256, "repeat": STEPS})
    assert isinstance(case, Case)
    return Case(case.name, case.dtype, {**case.params, **params})


def made(name: str, case: Case, implementation: type[Any]) -> tuple[HeldSet, Call, dict[str, Tensor]]:
    kind, source = kind_named(name), Source(b"steps!" * 6)
    held = kind.held(case, source.child("held"))
    runner = InProcess(kind, implementation)
    runner.hold(held)
    call = kind.draw(case, held, source.child("call"))
    return held, call, runner.run(call)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_honest_implementations_are_right_in_every_step(name: str, dtype: str) -> None:
    kind, implementation = kind_named(name), load(name, KINDS[name])
    for seed in range(3):
        source = Source(bytes([seed]) * 32)
        assert judge_case(kind, header(name), case_of(name, dtype), implementation, source, 2, True) is None


@pytest.mark.parametrize("name", KINDS)
def test_the_judge_knows_what_each_step_took(name: str) -> None:
    taken: list[Tensor] = []
    honest = load(name, KINDS[name])

    class Watched(honest):  # type: ignore[misc, valid-type]
        def forward(self, first: Tensor, *more: Any) -> Any:
            taken.append(first.clone())
            return super().forward(first, *more)

    case = case_of(name)
    held, call, got = made(name, case, Watched)
    kind = kind_named(name)
    followed = kind.followed(call, got)
    fresh, whole = call.inputs[INPUTS[name]].chunk(STEPS), followed.inputs[INPUTS[name]]
    assert torch.equal(whole, torch.cat(taken))
    assert torch.equal(taken[0], fresh[0])
    for number in range(1, STEPS):
        other = (taken[number] != fresh[number]).float().mean()
        assert 0.3 < float(other) < 0.7, "half of all signs are others"
    again = kind.followed(followed, got)
    assert torch.equal(again.inputs[INPUTS[name]], whole)
    with pytest.raises(ValueError, match="followed"):
        kind.expected(case, held, call)


@pytest.mark.parametrize("name", ATTACKS)
def test_who_answers_all_steps_in_the_first_is_wrong_from_the_second_on(name: str) -> None:
    scope: dict[str, Any] = {"__name__": f"hostile_{name}"}
    source = HERE / "files" / "together" / f"{ATTACKS[name]}.py"
    exec(compile(source.read_text(), str(source), "exec"), scope)
    (hostile,) = (each for each in scope.values() if isinstance(each, type) and each.__module__ == scope["__name__"])
    kind, case = kind_named(name), case_of(name)
    held, call, got = made(name, case, hostile)
    followed = kind.followed(call, got)
    finding = kind.compare(case, header(name), got, kind.expected(case, held, followed), None)
    assert finding is not None
    rows = len(got[OUTPUTS[name]]) // STEPS
    assert rows <= finding.index[0] < 2 * rows, "the second step is the first wrong one"
    # It is right where steps take what came with the message: it is the steps that stop it.
    apart = replace(call, params={**call.params, "follows": False})
    runner = InProcess(kind, hostile)
    runner.hold(held)
    got = runner.run(apart)
    assert kind.compare(case, header(name), got, kind.expected(case, held, apart), None) is None


@pytest.mark.parametrize("name", KINDS)
def test_steps_that_run_give_what_they_gave_when_recorded(name: str) -> None:
    kind, case = kind_named(name), case_of(name)
    held, call, got = made(name, case, load(name, KINDS[name]))
    shown, outputs = kind.excerpt(replace(call, recorded=True), got, Source(bytes(32)))
    assert not shown.recorded
    runner = InProcess(kind, load(name, KINDS[name]))
    runner.hold(held)
    assert differing(outputs, runner.run(shown)) is None
    sloppy = {name: value * 1.01 if value.is_floating_point() else value for name, value in outputs.items()}
    assert differing(sloppy, runner.run(shown)) == next(iter(outputs))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("rows", "width"), [(64, 256), (63, 256), (5, 112), (1, 8)])
def test_each_sign_hangs_on_four_values(rows: int, width: int, times: int) -> None:
    fresh, given = torch.randn(rows, times * width), torch.randn(rows, width)
    taken = signed_by_many(fresh, given)
    assert torch.equal(taken.abs(), fresh.abs())
    a, b, c, d = given.flatten().chunk(4)
    wanted = (a * c - b * d).view(-1, rows).t().repeat_interleave(4 * times, 1)
    assert torch.equal(taken.sign(), wanted.sign())
    # What is wider than the dtype of what follows is rounded to it first, as the judge sees it.
    wide = given.bfloat16().double() * (1 + 1e-4)
    assert torch.equal(signed_by_many(fresh.bfloat16(), wide), signed_by_many(fresh.bfloat16(), given.bfloat16()))
    with pytest.raises(ValueError, match="A step gave"):
        signed_by_many(fresh[: rows - 1] if rows > 1 else fresh[:, 1:], given)


def reached(rows: int, width: int, steps: int) -> float:
    """The share of a step's values that hang on one value of a step that many before."""
    found = torch.zeros(4, rows * width // 4, dtype=torch.bool)
    found[0, 17] = True
    for _ in range(steps):
        signs = found.any(0).view(-1, rows).t()
        found = signs.repeat_interleave(4, 1).reshape(4, -1)
    return float(found.float().mean())


@pytest.mark.parametrize("name", ["normalization", "activation"])
def test_no_part_of_the_published_steps_keeps_to_itself(name: str) -> None:
    kind = kind_named(name)
    published = [case for case in kind.cases("performance", header(name), GPU) if int(case["repeat"]) > 1]
    drawn = {
        (int(varied["tokens"]), int(varied["width"]))
        for case in published
        for varied in (kind.vary(case, Source(bytes([seed]) * 32)) for seed in range(20))
    }
    assert len(drawn) > len(published)
    for rows, width in drawn:
        assert rows % 2 == 1
        assert reached(rows, width, 24) == 1.0
    assert reached(64, 4096, 24) < 0.1, "what an even number of rows would do"


@pytest.mark.parametrize(("name", "steps"), [("normalization", 40), ("activation", 12)])
def test_what_few_values_change_is_soon_everywhere(name: str, steps: int) -> None:
    """In the published shapes, some of which are powers of two: there much could fall on the same places again and again."""
    kind, generator = kind_named(name), torch.Generator().manual_seed(0)
    published = [case for case in kind.cases("performance", header(name), GPU) if int(case["repeat"]) > 1]
    assert published
    for case in published:
        rows, width = int(case["tokens"]), int(case["width"])
        assert width % 4 == 0
        one = torch.randn(rows, width, generator=generator)
        other = one.clone()
        other[:1, :40] *= -1
        for _ in range(steps):
            fresh = torch.randn(rows, width * (2 if name == "activation" else 1), generator=generator)
            beside = 0.5 * torch.randn(rows, width, generator=generator)
            for given in (one, other):
                taken = signed_by_many(fresh, given)
                if name == "activation":
                    gate, up = taken.chunk(2, dim=-1)
                    given.copy_(functional.silu(gate) * up)
                else:
                    given.copy_(functional.rms_norm(taken + beside, (width,)))
        assert float(((one - other).abs() > 0.01 * one.abs()).float().mean()) > 0.3


@pytest.mark.parametrize("name", [*KINDS, "quantization"])
def test_who_guesses_all_steps_and_mends_the_guess_comes_no_nearer(name: str) -> None:
    """All steps at once, again and again: each sweep gives what every step makes of what the one before was guessed to give."""
    kind, steps, source = kind_named(name), 24, Source(b"sweeps" * 6)
    out = OUTPUTS.get(name, "y")
    for number, weights in enumerate((1, 2) if name == "quantization" else (1,)):
        if name == "quantization":
            workload = linear.LinearWorkload("sweeps", 2, 512, 512, weights, steps // weights)
            case = kind.case(workload, "float32", "cpu", "performance")  # type: ignore[attr-defined]
            held = {"dequant": Held(torch.randn(weights, 512, 512) / 512**0.5, "private")}
        else:
            case = case_of(name, **{"layers" if name == "attention" else "repeat": steps})
            held = kind.held(case, source.child("held"))
        call = kind.draw(case, held, source.child("call", number))
        call.rewrites, call.looked_at = {}, ()
        guess = torch.randn([*call.outputs[out].shape])
        for _ in range(8):
            better = kind.expected(case, held, kind.followed(call, {out: guess}))[out]
            last, before = (each.chunk(3)[-1] for each in (better, guess))
            guess = better
        assert float((last - before).norm() / last.norm()) > 0.3, "steps late in the message are as wrong as at first"


@pytest.mark.parametrize(("rows", "heads", "width"), [(64, 8, 32), (1, 8, 64), (3, 1, 16)])
def test_signs_come_from_many_rows(rows: int, heads: int, width: int) -> None:
    fresh, given = torch.randn(rows, heads, width), torch.randn(rows, heads, width)
    taken = signed_by(fresh, given)
    assert torch.equal(taken.abs(), fresh.abs())
    assert taken.is_contiguous()
    wanted = given.view(width // 16, -1, 16).transpose(0, 1).reshape(-1, width).sign()
    assert torch.equal(taken.view(-1, width).sign(), wanted)
    with pytest.raises(ValueError, match="A step gave"):
        signed_by(fresh, given[..., 1:])


@pytest.mark.parametrize(("taken", "given"), [((2, 8), (2, 8)), ((2, 8), (2, 3)), ((2, 3), (2, 8))])
def test_products_get_signs_as_far_as_they_reach(taken: tuple[int, int], given: tuple[int, int]) -> None:
    values, signs = torch.randn(taken), torch.randn(given)
    before, count = values.clone().flatten(), min(values.numel(), signs.numel())
    found = put_signs(values, signs)
    assert found is values
    wanted = signs.flatten()[:count].view(gcd(count, 16), -1).t().flatten()
    assert torch.equal(found.flatten()[:count].sign(), wanted.sign())
    assert torch.equal(found.flatten().abs(), before.abs())
    assert torch.equal(found.flatten()[count:], before[count:])


def test_where_calls_are_drawn_with_their_answers_there_is_one_step() -> None:
    assert {each.repeat for each in (*pointwise.NORMALIZATION_CPU, *pointwise.ACTIVATION_CPU)} == {1}
    assert {each.layers for each in attention.CPU} == {1}
    assert {each.rounds for each in linear.CPU} == {1}


@pytest.mark.parametrize("kind_name", ["normalization", "activation"])
def test_steps_of_the_unit_suite_are_apart(kind_name: str) -> None:
    """Nothing is timed there: several are made of which none follows another, to see that each result outlives the next."""
    kind = kind_named(kind_name)
    cases = kind.cases("unit", header(kind_name), Environment("x", "cpu", ("float32",)))
    assert {case["repeat"] for case in cases} == {1, 3}
    for case in cases:
        held = kind.held(case, Source(b"apart"))
        assert not kind.draw(case, held, Source(b"apart")).params.get("follows")


@pytest.mark.parametrize("workload", [*pointwise.NORMALIZATION_CUDA, *pointwise.ACTIVATION_CUDA], ids=lambda w: w.name)
def test_only_steps_of_several_rows_come_together(workload: pointwise.PointwiseWorkload) -> None:
    """Of one row, or of a prompt that is long enough alone, nothing is gained by more than one step but a way to answer them at once."""
    assert workload.repeat == 1 or (workload.decode and workload.tokens >= 16)
