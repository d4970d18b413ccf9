"""What a whole step of a model has of a slot's gain."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from torch.overrides import TorchFunctionMode

from engine.loader import LoadError
from engine.slots.header import FOLDERS
from engine.slots.kind import Environment, kind_named
from engine.slots.registry import implementations
from tests.engine.judging import header
from workers import calibrate, calibrations, steps
from workers.calibrations import ROOT, Calibration, Share, SlotCalibration, StepShares
from workers.judge import machine, speed
from workers.judge.hosts import Side
from workers.protocol import PairRecord
from workers.statistics import Estimate, LogRatios, Rate, estimate, of_whole

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


def test_the_interval_holds_what_either_of_the_two_leaves_possible() -> None:
    part = Estimate(1.0, 0.5, 2.0, 0.96, 8)
    found = of_whole(part, 0.5, (0.4, 0.6))
    assert found.gain == of_whole(part, 0.5).gain
    # Either of the two intervals can be wrong.
    assert found.level == pytest.approx(0.91)
    assert found.low == pytest.approx(1 / (0.6 + 0.4 / 1.5) - 1)
    assert found.high == pytest.approx(1 / (0.4 + 0.6 / 3.0) - 1)
    # A loss is larger where the share is, too.
    worse = of_whole(Estimate(-0.2, -0.3, -0.1, 0.96, 8), 0.5, (0.4, 0.6))
    assert worse.low == pytest.approx(1 / (0.4 + 0.6 / 0.7) - 1)
    assert worse.high == pytest.approx(1 / (0.6 + 0.4 / 0.9) - 1)
    with pytest.raises(ValueError, match="between none and all"):
        of_whole(part, 0.5, (0.4, 1.6))


class Clock:
    """Seconds as the engines would take them: a step takes ten, and each slot some of it."""

    OF = {"attention": 1.0, "quantization": 6.0, "normalization": 2.0, "activation": 0.5}

    def __init__(self, made: dict[tuple[str, str], Any], disturbed: tuple[str, int] = ("", -1)) -> None:
        self.disturbed = disturbed
        self.without = {id(engine): slot for (slot, name), engine in made.items() if not name}
        self.asked: Counter[str] = Counter()

    def __call__(self, engine: Any, step: steps.Step, turn: int) -> float:
        slot = self.without.get(id(engine), "") if engine.what != "whole" else ""
        self.asked[slot] += 1
        # Slower from turn to turn, and once for another reason.
        return (10.0 - self.OF.get(slot, 0.0)) * (1 + 0.01 * turn) * (3.0 if (slot, turn) == self.disturbed else 1.0)


def made_up() -> dict[tuple[str, str], Any]:
    whole = SimpleNamespace(what="whole")
    made: dict[tuple[str, str], Any] = {("", ""): whole}
    for slot in steps.SLOTS:
        made[slot, ""] = SimpleNamespace(what="without")
        made[slot, kind_named(slot).default] = whole
    # As one that is asked for by name, and takes as long.
    made["quantization", "none"] = SimpleNamespace(what="whole")
    return made


def test_one_round_that_was_disturbed_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_up()
    monkeypatch.setattr(steps, "engines", lambda *_: made)
    monkeypatch.setattr(steps, "seconds_of", Clock(made, ("normalization", 3)))
    share = steps.shares_of(PREFILL, TINY, "cpu", 7).shares["normalization"]["plain"]
    assert share.low <= share.share <= share.high
    assert share.share == pytest.approx(0.2, abs=0.02)


def test_what_is_missing_without_a_slot_is_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_up()
    clock = Clock(made)
    monkeypatch.setattr(steps, "engines", lambda *_: made)
    monkeypatch.setattr(steps, "seconds_of", clock)
    said: list[int] = []
    found = steps.shares_of(PREFILL, TINY, "cpu", 3, said.append)
    assert said == [1, 2, 3, 4]
    # One engine with all is shared by three; each has as many turns as any other.
    assert clock.asked == {"": 8} | dict.fromkeys(steps.SLOTS, 4)
    assert {slot: of[kind_named(slot).default].share for slot, of in found.shares.items()} == {
        slot: pytest.approx(seconds / 10) for slot, seconds in Clock.OF.items()
    }
    assert all(share.low == pytest.approx(share.high) for of in found.shares.values() for share in of.values())
    assert found.milliseconds == pytest.approx(10_200)


@pytest.mark.parametrize("step", [PREFILL, DECODE])
def test_steps_are_made_with_each_slot_left_out(step: steps.Step) -> None:
    found = steps.shares_of(step, TINY, "cpu", 2)
    assert {slot: list(of) for slot, of in found.shares.items()} == {
        slot: [kind_named(slot).default] for slot in steps.SLOTS
    }
    assert found.milliseconds > 0
    assert (found.step, found.phase) == (step.name, step.phase)


def test_around_a_slot_may_stand_what_is_faster_than_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(steps.AROUND, "cpu", {"normalization": "fused"})
    made = steps.engines(TINY, PREFILL, "cpu")
    assert made["normalization", "fused"] is made["", ""] is made["activation", "plain"]
    assert made["normalization", "plain"] is not made["", ""]
    named = {key: type(engine.forward.parts.normalization).__name__ for key, engine in made.items()}
    assert named["activation", ""] == named["", ""] == "FusedRMSNorm"
    assert named["normalization", "plain"] == "PlainRMSNorm"
    assert named["normalization", ""] == "NoNormalization"
    # What nobody asked for is no module.
    schemes = {key: {type(of.scheme).__name__ for of in engine.model.linears()} for key, engine in made.items()}
    assert schemes["quantization", "none"] != schemes["", ""]
    assert "NoQuantization" in schemes["quantization", ""]


def test_of_attention_that_cannot_be_recorded_no_decoding_is_measured_on_an_accelerator() -> None:
    assert steps.modules("attention", PREFILL, "cuda") == ["sdpa", "paged"]
    assert steps.modules("attention", DECODE, "cuda") == ["paged"]
    assert steps.modules("attention", DECODE, "cpu") == ["sdpa"]
    assert steps.modules("normalization", DECODE, "cuda") == ["plain", "fused"]
    assert steps.modules("quantization", DECODE, "cuda") == ["none"]


def test_what_is_left_out_gives_numbers_as_large_as_others_do() -> None:
    """Products of zeros take less time on an accelerator, and of the smallest numbers more on a CPU."""
    x = torch.randn(8, 64)
    results = [
        *steps.NoNormalization(1e-5).forward(x, None, torch.ones(64)),
        steps.NoActivation().forward(x),
        steps.NoQuantization().linear(x, steps.NoQuantization().pack(torch.randn(32, 64))),
    ]
    for result in results:
        assert 0.5 < float(result.std()) < 2.0
        assert result.shape[0] == 8
    twice = steps.NoActivation()
    assert twice.forward(x) is twice.forward(x)


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
        steps.seconds_of(made["", ""], PREFILL, 0)
    with Calls() as without:
        steps.seconds_of(made[slot, ""], PREFILL, 1)
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
        # Of heads' norms the models that are measured have none.
        assert all(name.startswith(("mixed", "head-norm")) for name, phase in phases.items() if phase is None), phases
        assert [names[n] for n in calibrations.cases_of(names, "prefill")] == [
            n for n in names if n.startswith("prefill")
        ]


FILE = "engine/attention/sdpa.py"
CODE = calibrations.code_of(ROOT / FILE)


def shares(step: str, phase: Any, **of: float) -> StepShares:
    """Of modules named "default"."""
    return StepShares(
        step,
        phase,
        10.0,
        {slot: {"default": Share(share, share, share, 7, CODE)} for slot, share in of.items()},
        "2026-11-30",
    )


def stage_of(pairs: list[PairRecord], kind: str = "attention", base: str = "default", path: str = FILE) -> Any:
    subject = SimpleNamespace(kind=SimpleNamespace(name=kind), base=Side(ROOT, path, base))
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

    # What head was measured against takes another share, of which nobody knows.
    assert len(speed._whole_steps(stage_of(pairs), decision)) == 1
    assert speed._whole_steps(stage_of(pairs, base="earlier"), decision) == []
    assert speed._whole_steps(stage_of(pairs, path="engine/attention/paged.py"), decision) == []

    def broken(*_: object) -> None:
        raise calibrations.CalibrationError("x.json cannot be used.")

    monkeypatch.setattr(calibrations, "of_machine", broken)
    assert speed._whole_steps(stage_of(pairs), decision) == []


@pytest.mark.parametrize("usual", [True, False])
def test_shares_are_added_to_what_a_machine_was_calibrated_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: bool
) -> None:
    """Whichever folder it is, and however it is spelled."""
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path) if usual else str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibrate, "sole_use", lambda *_: nullcontext())
    monkeypatch.setattr(steps, "shares_of", lambda step, *_, **__: shares(step.name, step.phase, attention=0.25))
    where, facts = machine.environment(), machine.facts()
    slot = SlotCalibration(
        "default", 12, 0, {}, Estimate(0, 0, 0, 0.95, 12), 0.01, 0.02, Rate(0, 100, 0.0, 0.03), 0.02, 1.0
    )
    calibrate.write(Calibration(where.machine_class, "2026-11-29", facts, {"attention": slot}), tmp_path)
    console = Console(record=True, width=200)
    first = calibrate.calibrate_steps(Path("."), console)
    assert [step.step for step in first.steps] == [step.name for step in steps.STEPS[where.device]]
    assert first.slots == {"attention": slot}
    (written,) = tmp_path.glob("*.json")
    assert calibrations.read_file(written) == first
    assert "attention `default` 25.0 % [25.0, 25.0]" in written.with_suffix(".md").read_text()
    # A second time they take the place of the first, and slots that are calibrated anew leave them.
    assert calibrate.calibrate_steps(tmp_path, console).steps == first.steps
    monkeypatch.setattr(calibrate, "workspace", lambda *_: nullcontext())
    bank = calibrate.Bank(tmp_path / "bank.jsonl")
    nothing = {"pairs": 0, "attempts": 0, "plants": (), "planted_pairs": 0, "resamples": 10}
    assert calibrate.calibrate([], bank, Path("."), console, **nothing).steps == first.steps  # type: ignore[arg-type]


def test_a_model_that_does_not_fit_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise LoadError("The weights do not fit into the memory that cpu has free.")

    monkeypatch.setattr(calibrate, "sole_use", lambda *_: nullcontext())
    monkeypatch.setattr(steps, "shares_of", full)
    assert calibrate.main(["--steps", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_of_a_share_that_is_hardly_known_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [record(n, "stop", 2.0) for n in range(8)]
    decision: Any = SimpleNamespace(estimate=estimate(LogRatios.of(pairs).gate))
    for low, high, said in ((0.0, 0.137, 0), (0.0, 0.04, 1), (0.15, 0.24, 1)):
        share = Share((low + high) / 2 if low else 0.004, low, high, 7, CODE)
        known = Calibration("x", "", {}, {}, [StepShares("d", "decode", 1.0, {"attention": {"default": share}}, "")])
        monkeypatch.setattr(calibrations, "of_machine", lambda *_, known=known: known)
        assert len(speed._whole_steps(stage_of(pairs), decision)) == said


@pytest.mark.parametrize(
    "options",
    [
        ["--pairs", "-3"],
        ["--plant", "7"],
        ["--plant", "nan"],
        ["--resamples", "0"],
        ["--out", "/proc/x"],
        ["--bank", "/proc/x/bank.jsonl"],
        ["--bank", "/tmp"],
        ["--bank", __file__],
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: pytest.fail("It was measured."))
    before = Path(__file__).read_bytes()
    with pytest.raises(SystemExit) as ended:
        calibrate.main(options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err
    assert Path(__file__).read_bytes() == before


@pytest.mark.parametrize("share", [-0.1, 1.2])
def test_a_file_with_a_share_that_cannot_be_is_none(tmp_path: Path, share: float) -> None:
    known = Calibration("x", "2026-11-30", {}, {}, [shares("d", "decode", attention=share)])
    path = calibrate.write(Calibration("x", "2026-11-30", {}, {}), tmp_path)
    path.write_bytes(msgspec.json.encode(known))
    with pytest.raises(calibrations.CalibrationError, match="cannot be used"):
        calibrations.read_file(path)


def test_the_shares_that_are_kept_are_of_modules_that_there_are() -> None:
    """Whatever stands in calibration/ can be used."""
    found = [step for name in calibrations.names() if (read := calibrations.read(name)) for step in read.steps]
    assert found
    for step in found:
        assert step.shares
        for slot, of in step.shares.items():
            assert set(of) <= set(implementations(ROOT / "engine", slot)), step
            assert all(share.low <= share.share <= share.high and share.share < 0.99 for share in of.values()), step
