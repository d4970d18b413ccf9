"""Calibration: a bank that survives being killed, what is learned from it, and how the rule of an attempt uses that within bounds."""

import dataclasses
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.slots import registry
from engine.slots.kind import Environment, digest_of, kind_named
from engine.slots.places import takes_out
from workers import calibrate, calibrations
from workers.calibrate import Bank, BankedAttempt, BankedPair, learn, slowed, workspace
from workers.judge.speed import rule_for
from workers.protocol import PairRecord, Policy
from workers.sole_use import Occupied, sole_use
from workers.statistics import LogRatios
from workers.statistics.simulation import ACCELERATOR, BUSY_CORES, Noise
from workers.suites.version import ROOT

CASES = ("case-1", "case-2", "case-3")


def pair(logs: LogRatios, number: int) -> PairRecord:
    head = {case: float(np.exp(-value)) for case, value in zip(logs.cases, logs.values[number], strict=True)}
    return PairRecord(number, "AB", "stop", dict.fromkeys(logs.cases, 1.0), head)


def banked(bank: Bank, noise: Noise, pairs: int, planted: float = 0.0, workload: str = "cases") -> None:
    (logs,) = noise.attempts(np.random.default_rng(7), 1, pairs, len(CASES), planted)
    for number in range(pairs):
        measured = pair(logs, number)
        bank.add(BankedPair("normalization", "plain", planted, measured, 3.0, "cpu-test", "v", 0.0, "This", workload))


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "some" / "bank.jsonl")


def test_a_quiet_machine_is_learned_from_its_bank(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 60)
    banked(bank, ACCELERATOR, 32, planted=0.05)
    bank.add(BankedAttempt("normalization", "plain", "passed", "no_difference", 200.0, "cpu-test", "v", 0.0, "This"))
    found = learn(bank, "cpu-test", "This", "normalization", (0.05, 0.02), "cpu", 200)
    assert found.pairs == 60
    assert set(found.cases) == set(CASES)
    assert found.bias.low < 0 < found.bias.high or abs(found.bias.gain) < 0.003
    assert found.spread < 0.02
    assert found.false_gates.hits <= 4
    assert found.effect_at_90 is not None
    assert found.effect_at_90 < 0.03
    (planted,) = found.planted
    assert planted.share == 0.05
    assert planted.measured.low < 0.05 < planted.measured.high
    assert planted.gates.rate > 0.9
    assert planted.slower.rate > 0.9
    assert found.attempts is not None
    assert found.attempts.decisions == {"passed, no_difference": 1}


def test_noise_makes_floors_and_resolution_wider(bank: Bank, tmp_path: Path) -> None:
    banked(bank, ACCELERATOR, 40)
    other = Bank(tmp_path / "busy.jsonl")
    banked(other, BUSY_CORES, 40)
    quiet = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)
    busy = learn(other, "cpu-test", "This", "normalization", (), "cpu", 50)
    assert busy.equivalence > 2 * quiet.equivalence
    assert all(busy.cases[case].floor > quiet.cases[case].floor for case in CASES)


def test_too_small_a_bank_is_refused_with_a_sentence(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 5)
    with pytest.raises(calibrate.CalibrationFailed, match="has 5 pairs of normalization on cpu-test; at least 12"):
        learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)


def test_a_line_that_was_half_written_is_left_out(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 3)
    with bank.path.open("ab") as file:
        file.write(b'{"type":"pair","slot":"normal')
    assert len(bank.pairs("cpu-test", "This", "normalization")) == 3


def test_pairs_over_other_cases_are_not_mixed_in(bank: Bank) -> None:
    old = PairRecord(0, "AB", "stop", {"gone": 1.0}, {"gone": 1.0})
    bank.add(BankedPair("normalization", "plain", 0.0, old, 3.0, "cpu-test", "v0", 0.0, "This"))
    banked(bank, ACCELERATOR, 3)
    assert len(bank.pairs("cpu-test", "This", "normalization")) == 3
    assert not bank.pairs("cpu-other", "This", "normalization")
    banked(bank, ACCELERATOR, 2, workload="cases of the same names that take longer")
    assert len(bank.pairs("cpu-test", "This", "normalization")) == 2
    assert len(bank.pairs("cpu-test", "This", "normalization", workload="cases")) == 3


HERE: dict[str, str | float] = {"processor": "This(R) Processor", "cores": 2.0}


def written(folder: Path, bank: Bank) -> calibrations.SlotCalibration:
    slot = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)
    calibrate.write(calibrations.Calibration("cpu-test", "2026-01-02", HERE, {"normalization": slot}), folder)
    return slot


def test_what_is_written_is_what_the_rule_reads(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path))
    assert calibrations.slot_of("cpu-test", "normalization", HERE, "cases") is None
    banked(bank, ACCELERATOR, 40)
    slot = written(tmp_path, bank)
    read = calibrations.slot_of("cpu-test", "normalization", HERE, "cases")
    assert read == slot
    assert calibrations.slot_of("cpu-test", "attention", HERE, "cases") is None
    assert calibrations.slot_of("cpu-test", "normalization", HERE, "others") is None, "measured on other cases"
    rule = rule_for(Policy(alpha=0.01), "cpu", read)
    assert rule.alpha == 0.01
    assert set(rule.floors) == set(CASES)
    assert rule.equivalence < rule_for(Policy(), "cpu").equivalence
    text = (tmp_path / "cpu-test.this-processor.md").read_text()
    assert "| normalization | 40 |" in text
    assert "| case-1 |" in text


def test_whole_attempts_over_other_cases_are_left_out(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 40)
    for workload, count in (("cases", 2), ("others", 3), ("", 1)):
        for _ in range(count):
            bank.add(
                BankedAttempt("normalization", "plain", "passed", "faster", 9.0, "cpu-test", "v", 0.0, "This", workload)
            )
    found = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50).attempts
    assert found is not None
    # Of those that do not say what they were over nothing can be told.
    assert (found.total, found.gated) == (3, 3)


def test_what_is_shipped_was_measured_on_the_cases_that_are_published() -> None:
    """What was not would never be used, and nobody would notice."""
    names = calibrations.names()
    assert names
    for name in names:
        found = calibrations.read(name)
        assert found is not None
        device = "cpu" if found.machine_class.startswith("cpu") else "cuda"
        where = Environment(found.machine_class, device, ("float32", "bfloat16"), sm=90 if device == "cuda" else 0)
        for kind, slot in found.slots.items():
            declared = registry.read_header(registry.implementations(ROOT / "engine", kind)[kind_named(kind).default])
            published = kind_named(kind).cases("performance", dataclasses.replace(declared, limits={}), where)
            assert slot.workload == digest_of(published), f"{kind} in {name}"


def test_what_a_kind_trades_in_a_case_widens_that_floor_alone(bank: Bank, tmp_path: Path) -> None:
    banked(bank, ACCELERATOR, 40)
    slot = written(tmp_path, bank)
    plain = rule_for(Policy(), "cpu", slot)
    traded = rule_for(Policy(), "cpu", slot, {"case-1": 0.05, "case-3": plain.floors["case-3"] / 2})
    assert traded == msgspec.structs.replace(plain, floors=plain.floors | {"case-1": 0.05})
    unknown = rule_for(Policy(), "cpu", None, {"case-1": 0.05, "case-2": 0.01})
    assert unknown.floors == {"case-1": 0.05, "case-2": unknown.floor}


def test_each_make_of_machine_goes_by_its_own(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path))
    banked(bank, ACCELERATOR, 40)
    slot = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)
    other = msgspec.structs.replace(slot, pairs=7)
    for facts, found in ((HERE, slot), (HERE | {"processor": "That"}, other)):
        calibrate.write(calibrations.Calibration("cpu-test", "2026-01-02", facts, {"normalization": found}), tmp_path)
    assert calibrations.names() == ["cpu-test.that", "cpu-test.this-processor"]
    assert calibrations.slot_of("cpu-test", "normalization", HERE | {"torch": "later"}, "cases") == slot
    assert calibrations.slot_of("cpu-test", "normalization", HERE | {"processor": "That"}, "cases") == other
    assert calibrations.slot_of("cpu-test", "normalization", HERE | {"accelerator": "Some"}, "cases") is None
    assert calibrations.slot_of("cpu", "normalization", HERE, "cases") is None
    (tmp_path / "cpu-test.that.json").write_text("{")
    assert calibrations.slot_of("cpu-test", "normalization", HERE, "cases") == slot, "another make's file is broken"
    # As files were named before, or as a person named one.
    (tmp_path / "cpu-test.this-processor.json").rename(tmp_path / "cpu-test.json")
    assert calibrations.slot_of("cpu-test", "normalization", HERE, "cases") == slot


def test_makes_and_versions_are_told_apart_in_a_bank(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 12)
    entries = bank.pairs("cpu-test", "This", "normalization")
    for make, version in (("That", "v"), ("This", "w")):
        bank.add(msgspec.structs.replace(entries[0], make=make, suite_version=version))
    assert len(bank.pairs("cpu-test", "This", "normalization")) == 13
    assert not bank.pairs("cpu-test", "", "normalization")
    found = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)
    assert (found.pairs, found.suite_versions) == (13, 2)
    text = calibrate.markdown(calibrations.Calibration("cpu-test", "2026-01-02", HERE, {"normalization": found}))
    assert "| 13, by 2 versions |" in text


def test_no_calibration_makes_the_judge_blind(bank: Bank) -> None:
    banked(bank, ACCELERATOR, 40)
    slot = learn(bank, "cpu-test", "This", "normalization", (), "cpu", 50)
    wild = {name: msgspec.structs.replace(case, floor=0.9) for name, case in slot.cases.items()}
    bias = msgspec.structs.replace(slot.bias, gain=0.5, low=0.4, high=0.6)
    rule = rule_for(Policy(), "cpu", msgspec.structs.replace(slot, cases=wild, bias=bias, equivalence=0.9))
    assert set(rule.floors.values()) == {calibrations.MAX_FLOOR}
    assert rule.bias == calibrations.MAX_BIAS
    assert rule.equivalence == calibrations.MAX_EQUIVALENCE


def test_a_broken_calibration_is_an_error_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path))
    (tmp_path / "cpu-test.json").write_text("{}")
    with pytest.raises(calibrations.CalibrationError, match=r"cpu-test\.json cannot be used"):
        calibrations.read("cpu-test")


@pytest.mark.parametrize("slot", sorted(calibrate.SPINNING))
def test_a_slowed_copy_is_a_slot_file_that_spins(slot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests of this process may have loaded the default that the copy is named after.
    monkeypatch.setattr(registry, "_announced", {})
    with workspace() as made:
        path = made.default(slot)
        tree = made.tree(path, slowed((made.repository / path).read_text(), slot, 0.05))
        monkeypatch.delitem(sys.modules, path.removesuffix(".py").replace("/", "."), raising=False)
        header, implementation = registry.load_file(tree / path)
    assert header.kind == slot
    method = getattr(implementation, calibrate.SPINNING[slot])
    assert method.__code__.co_name == "spinning"
    # Else it would be slowed by a copy as well.
    assert takes_out(method) is (slot in ("normalization", "activation"))


class Silent(calibrate.Tell):
    def __init__(self) -> None:
        self.counts: list[int] = []
        self.waited = 0

    def total(self, count: int) -> None:
        pass

    def done(self, count: int) -> None:
        self.counts.append(count)

    def waiting(self) -> None:
        self.waited += 1


@pytest.mark.slow  # Measures a real pair, up to three times where the machine is busy.
def test_pairs_are_measured_in_the_sandbox_and_gone_on_with(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(kind_named("activation")), "parts_of_a_pair", 1)
    first, again = Silent(), Silent()
    with workspace() as made:
        calibrate.bank_pairs(made, bank, "activation", 0.0, 1, first)
        calibrate.bank_pairs(made, bank, "activation", 0.0, 1, again)
    (entry,) = [entry for entry in bank if isinstance(entry, BankedPair)]
    assert entry.slot == "activation"
    assert all(seconds > 0 for side in (entry.pair.base, entry.pair.head) for seconds in side.values())
    assert first.counts == [0, 1, 1]
    assert again.counts == [1]


@pytest.mark.parametrize(
    ("wanted", "visible", "shown", "found"), [(None, "", 8, 0), (None, "3", 8, 3), (5, "", 8, 5), (0, "0", 0, 0)]
)
def test_the_accelerator_is_the_one_that_is_named(wanted: int | None, visible: str, shown: int, found: int) -> None:
    assert calibrate.chosen(wanted, visible, shown) == found


@pytest.mark.parametrize(
    ("wanted", "visible", "shown", "says"),
    [(1, "0", 8, "CUDA_VISIBLE_DEVICES is '0'"), (8, "", 8, "0 to 7"), (1, "", 1, "0 alone"), (1, "", 0, "none")],
)
def test_another_accelerator_than_there_is_is_refused(wanted: int, visible: str, shown: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calibrate.chosen(wanted, visible, shown)


def test_what_cannot_be_done_is_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for arguments in (["--accelerator", "99"], ["--outcomes", str(tmp_path / "file")]):
        with pytest.raises(SystemExit):
            calibrate.main([*arguments, "--bank", str(tmp_path / "bank.jsonl")])
        assert arguments[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "bank.jsonl").exists()


def test_nobody_measures_pairs_beside_another_attempt(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "OCCUPIED_SECONDS", 0.0)
    told = Silent()
    with sole_use(0, 60, lambda: None), workspace() as made, pytest.raises(Occupied, match="Accelerator 0"):
        calibrate.bank_pairs(made, bank, "activation", 0.0, 1, told)
    assert told.waited == 1
