"""How often the judge is wrong: calibrations beside what identical code has shown since."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from swapbench.standings import error_rates
from swapbench.submissions.models import Attempt, Result, Submission
from tests.web.sample import SENTINELS
from workers import calibrations
from workers.calibrations import Banked, BankedPair, Calibration, SlotCalibration
from workers.statistics import Estimate, Rate


def calibrated(machine_class: str, kind: str = "attention", make: str = "Some CPU") -> Calibration:
    slot = SlotCalibration(
        implementation="sdpa",
        pairs=120,
        repeated=3,
        cases={},
        bias=Estimate(0.002, -0.004, 0.008, 0.95, 120),
        spread=0.021,
        equivalence=0.031,
        false_gates=Rate.of(2, 2000),
        effect_at_90=0.044,
        seconds_per_pair=2.5,
        planted=[
            calibrations.Planted(0.05, 32, Estimate(0.048, 0.04, 0.06, 0.95, 32), Rate.of(470, 500), Rate.of(499, 500))
        ],
    )
    return Calibration(machine_class, "2026-11-25", {"processor": make, "torch": "2.13.0"}, {kind: slot})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWAPBENCH_CALIBRATION", str(tmp_path))
    return tmp_path


def write(folder: Path, found: Calibration) -> None:
    (folder / f"{calibrations.file_name(found.machine_class, found.environment)}.json").write_bytes(
        msgspec.json.encode(found)
    )


def test_pairs_of_identical_code_come_by_machine_and_kind(full: dict[int, Submission], folder: Path) -> None:
    (machine,) = error_rates.error_rates()
    measured = Result.objects.filter(phase="same", side="base").values("attempt", "path", "pair").distinct().count()
    assert measured
    assert measured % SENTINELS == 0
    assert sum(len(slot.pairs) for slot in machine.slots.values()) == measured
    attention = machine.slots["attention"]
    first = attention.pairs[0]
    rows = Result.objects.filter(attempt=first.attempt, phase="same", pair=32)
    logs = [
        math.log(rows.get(case=case, side="base").seconds / rows.get(case=case, side="head").seconds)
        for case in set(rows.values_list("case", flat=True))
    ]
    assert first.log_ratio == pytest.approx(sum(logs) / len(logs))
    assert [pair.attempt for pair in attention.pairs] == sorted(pair.attempt for pair in attention.pairs)
    live = attention.live
    assert live is not None
    assert live.low < 0 < live.high
    assert live.pairs == len(attention.pairs)
    assert attention.spread is not None
    assert 0.005 < attention.spread < 0.06


def test_a_calibration_stands_beside_them(full: dict[int, Submission], folder: Path) -> None:
    (machine,) = error_rates.error_rates()
    assert machine.make
    write(folder, calibrated(machine.machine_class, make=machine.make))
    write(folder, calibrated(machine.machine_class, make="Another CPU"))
    write(folder, calibrated("h100", "normalization"))
    (folder / "broken.json").write_text("{")
    found = {(each.machine_class, each.make): each for each in error_rates.error_rates()}
    known = found[machine.machine_class, machine.make].slots["attention"]
    assert known.calibrated is not None
    assert known.calibrated.pairs == 120
    assert known.pairs
    for other, kind in ((machine.machine_class, "Another CPU"), "attention"), (("h100", "Some CPU"), "normalization"):
        assert found[other].slots[kind].calibrated is not None
        assert found[other].slots[kind].pairs == []
    assert len(found) == 3


def test_the_page_says_both(full: dict[int, Submission], folder: Path, client: Client) -> None:
    (machine,) = error_rates.error_rates()
    write(folder, calibrated(machine.machine_class, make=machine.make))
    answer = client.get("/error-rates")
    text = answer.content.decode()
    assert answer.status_code == 200
    for said in (
        "0.10\u202f%",
        "4.4\u202f%",
        "slowed on purpose",
        f"{machine.make}, torch 2.13.0",
        'class="fig still"',
    ):
        assert said in text, said
    assert text.count("<circle") >= len(machine.slots["attention"].pairs)


def test_the_page_with_nothing_to_say(db: None, folder: Path, client: Client) -> None:
    assert "Nothing has been calibrated or judged yet." in client.get("/error-rates").content.decode()


def test_the_bank_can_be_gone_on_from(full: dict[int, Submission], folder: Path, tmp_path: Path) -> None:
    bank = tmp_path / "banks" / "bank.jsonl"
    call_command("samecode", str(bank))
    entries = [msgspec.json.decode(line, type=Banked) for line in bank.read_bytes().splitlines()]
    assert entries
    assert all(isinstance(entry, BankedPair) and entry.planted == 0 for entry in entries)
    assert {json.loads(line)["type"] for line in bank.read_text().splitlines()} == {"pair"}
    call_command("samecode", str(bank))
    assert len(bank.read_bytes().splitlines()) == len(entries), "nothing is added twice"


def test_banked_pairs_say_what_their_cases_were_made_of(full: dict[int, Submission], folder: Path) -> None:
    before = list(error_rates.banked())
    assert {entry.workload for entry in before} == {""}, "the samples' outcomes do not say"
    attempt = Attempt.objects.get(pk=max(same.attempt for same in error_rates.latest()))
    path = Result.objects.filter(attempt=attempt, phase="same").values_list("path", flat=True)[0]
    said = {"status": "passed", "implementations": [{"path": path, "performance": {"workload": "0123", "pairs": []}}]}
    Attempt.objects.filter(pk=attempt.pk).update(outcome=json.dumps(said))
    assert {entry.workload for entry in error_rates.banked()} == {"", "0123"}


def test_a_bank_that_cannot_be_written(db: None, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written"):
        call_command("samecode", str(tmp_path))
