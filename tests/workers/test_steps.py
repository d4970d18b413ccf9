"""What a whole step of a model has of a slot's gain."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.overrides import TorchFunctionMode

from engine.slots.header import FOLDERS
from engine.slots.kind import Environment, kind_named
from tests.engine.judging import header
from workers import calibrate, calibrations, steps
from workers.calibrations import Calibration, StepShares
from workers.judge import speed
from workers.protocol import PairRecord
from workers.statistics import Estimate, LogRatios, estimate, of_whole

TINY = steps.LLAMA_1B | {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
PREFILL = steps.Step("a prompt", "prefill", 1, 48)
DECODE = steps.Step("a token of each", "decode", 3, 40, 4)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("gain", "share", "whole"), [(1.0, 0.5, 1 / 3), (0.25, 0.1, 1 / 0.98 - 1), (0.3, 0.0, 0.0), (0.3, 1.0, 0.3)]
)
def test_a_part_twice_as_fast_that_takes_half_saves_a_quarter(gain: float, share: float, whole: float) -> None:
    found = of_whole(Estimate(gain, -gain / 2, 2 * gain, 0.96, 12), share)
    assert found.gain == pytest.approx(whole)
    assert found.low <= 0 <= found.gain <= found.high
    assert (found.level, found.pairs) == (0.96, 12)
    assert of_whole(Estimate(1e12, 0, 1e12, 0.96, 12), 0.5).gain == pytest.approx(1.0)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_no_part_takes_more_than_all(share: float) -> None:
    with pytest.raises(ValueError, match="between none and all"):
        of_whole(Estimate(0.1, 0.0, 0.2, 0.95, 8), share)


@pytest.mark.parametrize("step", [PREFILL, DECODE])
def test_a_slot_that_is_left_out_is_missing_from_the_step(step: steps.Step) -> None:
    """Each engine makes the whole step, without one of the four, and the longest of them takes the larger part."""
    said: list[int] = []
    found = steps.shares_of(step, TINY, "cpu", 3, said.append)
    assert said == [1, 2, 3, 4]
    assert set(found.shares) == set(steps.SLOTS) == set(found.spread)
    assert all(0.0 <= share <= 1.0 for share in found.shares.values())
    assert found.milliseconds > 0
    assert (found.step, found.phase, found.rounds) == (step.name, step.phase, 3)


class Calls(TorchFunctionMode):
    """Counts calls of functions of PyTorch, by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[getattr(function, "__name__", "")] += 1
        return function(*args, **(kwargs or {}))


MARKS = {
    "attention": "scaled_dot_product_attention",
    "normalization": "rsqrt",
    "activation": "silu",
    "quantization": "linear",
}
"""A function of PyTorch that the default of a slot calls, and nothing else in a prompt."""


@pytest.mark.parametrize("slot", steps.SLOTS)
def test_what_is_left_out_is_not_computed_and_all_else_is(slot: str) -> None:
    made = steps.engines(TINY, PREFILL, "cpu")
    with Calls() as whole:
        steps.seconds_of(made[""], PREFILL, 0)
    with Calls() as without:
        steps.seconds_of(made[slot], PREFILL, 1)
    for each, mark in MARKS.items():
        assert whole.counts[mark] >= TINY["num_hidden_layers"]
        assert (without.counts[mark] < whole.counts[mark]) is (each == slot), (each, whole.counts, without.counts)


def test_no_two_prompts_begin_alike() -> None:
    first = [tuple(text[:1]) for turn in range(3) for text in steps.prompts(DECODE, turn, 500)]
    assert len(set(first)) == len(first)
    assert {len(text) for text in steps.prompts(DECODE, 0, 500)} == {40}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_published_case_is_of_a_phase_or_mixes_them(device: str) -> None:
    where = Environment("x", device, ("float32", "bfloat16"), sm=90 if device == "cuda" else 0)  # type: ignore[arg-type]
    for kind in FOLDERS:
        if kind == "adapter":
            continue
        names = [case.name for case in kind_named(kind).cases("performance", header(kind), where)]
        phases = {name: calibrations.phase_of(name) for name in names}
        assert {"prefill", "decode"} <= set(phases.values()), phases
        assert all(name.startswith("mixed") for name, phase in phases.items() if phase is None), phases
        assert sorted(calibrations.cases_of(names, "decode")) == [
            number for number, phase in enumerate(phases.values()) if phase == "decode"
        ]


def shares(step: str, phase: Any, **of: float) -> StepShares:
    return StepShares(step, phase, 10.0, of, dict.fromkeys(of, 0.0), 5, "2026-11-30")


def stage_of(pairs: list[PairRecord], kind: str = "attention") -> Any:
    subject = SimpleNamespace(kind=SimpleNamespace(name=kind))
    return SimpleNamespace(
        records=pairs, trial=SimpleNamespace(subject=subject, environment=SimpleNamespace(machine_class="x"))
    )


def record(index: int, phase: Any, decode: float) -> PairRecord:
    jitter = 1 + 0.001 * (index % 3)
    return PairRecord(
        index,
        "AB",
        phase,
        {"prefill-a": 1.0, "decode-a": jitter, "decode-b": 1.0},
        {"prefill-a": 1.0, "decode-a": 1 / decode, "decode-b": 1 / decode},
    )


def test_a_step_has_the_gain_in_the_cases_of_its_phase_from_the_pairs_that_confirmed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = Calibration(
        "x",
        "2026-11-30",
        {},
        {},
        [
            shares("p", "prefill", attention=0.3),
            shares("d", "decode", attention=0.5),
            shares("o", "decode", activation=0.5),
        ],
    )
    monkeypatch.setattr(calibrations, "of_machine", lambda *_: known)
    pairs = [record(n, "stop", 3.0) for n in range(12)] + [record(12 + n, "confirm", 2.0) for n in range(8)]
    decision: Any = SimpleNamespace(estimate=estimate(LogRatios.of(pairs).gate))
    prefill, decode = speed._whole_steps(stage_of(pairs), decision)
    assert (prefill.step, prefill.share, prefill.speedup.estimate) == ("p", 0.3, 0.0)
    assert (decode.step, decode.share) == ("d", 0.5)
    assert decode.speedup.estimate == pytest.approx(1 / 3, abs=0.01)
    assert decode.speedup.low <= decode.speedup.estimate <= decode.speedup.high
    without = speed._whole_steps(stage_of(pairs[:12]), decision)
    assert without[1].speedup.estimate == pytest.approx(0.5, abs=0.01)


def test_without_a_measured_share_nothing_is_said_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [record(n, "stop", 2.0) for n in range(8)]
    decision: Any = SimpleNamespace(estimate=estimate(LogRatios.of(pairs).gate))
    nothing: Any = SimpleNamespace(estimate=None)
    known = Calibration("x", "2026-11-30", {}, {}, [shares("d", "decode", attention=0.5)])
    for found, made, kind in (
        (None, decision, "attention"),
        (known, nothing, "attention"),
        (known, decision, "adapter"),
    ):
        monkeypatch.setattr(calibrations, "of_machine", lambda *_, found=found: found)
        assert speed._whole_steps(stage_of(pairs, kind), made) == []

    def broken(*_: object) -> None:
        raise calibrations.CalibrationError("x.json cannot be used.")

    monkeypatch.setattr(calibrations, "of_machine", broken)
    assert speed._whole_steps(stage_of(pairs), decision) == []


def test_shares_are_added_to_what_a_machine_was_calibrated_to(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path))
    monkeypatch.setattr(calibrate, "sole_use", lambda *_: nullcontext())
    monkeypatch.setattr(steps, "shares_of", lambda step, *_: shares(step.name, step.phase, attention=0.25))
    console = Console(record=True, width=200)
    first = calibrate.calibrate_steps(tmp_path, console)
    assert [step.step for step in first.steps] == [step.name for step in steps.STEPS["cpu"]]
    (written,) = tmp_path.glob("*.json")
    read = calibrations.read(written.name.removesuffix(".json"))
    assert read == first
    assert "| 25.0 % ± 0.0 % |" in written.with_suffix(".md").read_text()
    # A second time they take the place of the first, and slots stay as they are.
    assert calibrate.calibrate_steps(tmp_path, console).steps == first.steps


def test_the_shares_that_are_kept_are_of_all_slots() -> None:
    """Whatever stands in calibration/ can be used."""
    for name in calibrations.names():
        found = calibrations.read(name)
        assert found is not None
        for step in found.steps:
            assert set(step.shares) == set(steps.SLOTS)
            assert 0.5 < sum(step.shares.values()) < 1.2, (name, step)
