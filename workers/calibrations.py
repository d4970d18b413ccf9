"""What a machine class has been found to tell apart, as `swapbench calibrate` wrote it and as the rule of an attempt uses it. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from workers.protocol import PairRecord
from workers.statistics import Estimate, Rate

ROOT = Path(__file__).resolve().parent.parent
MIN_FLOOR, MAX_FLOOR = 0.005, 0.10
# Below 2 % nobody asks whether two things differ, and telling it takes twice the pairs and fails in one of ten attempts.
MIN_EQUIVALENCE, MAX_EQUIVALENCE = 0.02, 0.10
MAX_BIAS = 0.01


class CaseCalibration(msgspec.Struct, frozen=True):
    """One case: the loss that identical code shows in one of twenty estimates, its bias with interval, a pair's standard deviation."""

    floor: float
    bias: Estimate
    spread: float


class Planted(msgspec.Struct, frozen=True):
    """A slow-down put into one side on purpose: what was measured of it, and how often the rule finds it either way round."""

    share: float
    """Of its own time that the slowed side spins after each call; on an accelerator about, of the time that a call takes whose operands are in the caches."""
    pairs: int
    measured: Estimate
    """Gain of the plain side over the slowed one."""
    gates: Rate
    """Confirmed gains, where the plain side is the head."""
    slower: Rate
    """Losses, where the slowed side is the head."""


class WholeAttempts(msgspec.Struct, frozen=True):
    """Attempts from job to outcome whose head differs from base by a comment."""

    total: int
    gated: int
    failed: int
    decisions: dict[str, int]
    median_seconds: float


class SlotCalibration(msgspec.Struct, frozen=True):
    """What one slot's cases give on a machine class. Fractions; `equivalence` is the margin with which nine of ten attempts on identical code end as "no difference"."""

    implementation: str
    pairs: int
    repeated: int
    """Tries of these pairs that were thrown away as disturbed."""
    cases: dict[str, CaseCalibration]
    bias: Estimate
    spread: float
    equivalence: float
    false_gates: Rate
    effect_at_90: float | None
    """The gain that the rule gates with 90 % power; None where it is beyond 50 %."""
    seconds_per_pair: float
    planted: list[Planted] = []
    attempts: WholeAttempts | None = None


class Calibration(msgspec.Struct, frozen=True):
    """A machine class: its facts when it was calibrated, and its slots."""

    machine_class: str
    measured_on: str
    """Date in UTC, ISO 8601."""
    environment: dict[str, str | float]
    slots: dict[str, SlotCalibration]


class BankedPair(msgspec.Struct, frozen=True, tag="pair"):
    """One pair. `planted` is the share of its own time that base spins; 0 where both sides are the same code. `seconds` 0: not known."""

    slot: str
    implementation: str
    planted: float
    pair: PairRecord
    seconds: float
    machine_class: str
    suite_version: str
    at: float


class BankedAttempt(msgspec.Struct, frozen=True, tag="attempt"):
    """One whole attempt on identical code."""

    slot: str
    implementation: str
    status: str
    decision: str
    seconds: float
    machine_class: str
    suite_version: str
    at: float


Banked = BankedPair | BankedAttempt


class CalibrationError(Exception):
    """A calibration file cannot be read; `str(error)` says which and why."""


def folder() -> Path:
    """Where calibrations lie: `SWAPBENCH_CALIBRATION`, else calibration/ beside the code."""
    return Path(os.environ.get("SWAPBENCH_CALIBRATION") or ROOT / "calibration")


def read(machine_class: str) -> Calibration | None:
    """The calibration of a machine class; None where there is none. Raises CalibrationError for a file that is no calibration."""
    path = folder() / f"{machine_class}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CalibrationError(
            f"{path} cannot be used: {error}. Mend it or make it anew by `swapbench calibrate`."
        ) from None


def names() -> list[str]:
    """The machine classes that have a file."""
    return sorted(path.stem for path in folder().glob("*.json"))


def slot_of(machine_class: str, kind: str, facts: Mapping[str, str | float] | None = None) -> SlotCalibration | None:
    """What is known of a slot on a machine class, if anything; given the `facts` of a machine, only what was measured on such a one.

    Different makes of processors may share a class, and what one can tell apart another may not.
    """
    found = read(machine_class)
    if found is None or (facts is not None and make(found.environment) != make(facts)):
        return None
    return found.slots.get(kind)


def make(facts: Mapping[str, str | float]) -> str | float | None:
    """What tells makes of machines apart: the accelerator's name, else the processor's."""
    return facts.get("accelerator", facts.get("processor"))


def floors(slot: SlotCalibration, cases: Sequence[str] = ()) -> dict[str, float]:
    """By case, the loss that a case may show. A file cannot make the judge blind, nor deaf to noise: bounded either way."""
    return {
        name: min(MAX_FLOOR, max(MIN_FLOOR, case.floor))
        for name, case in slot.cases.items()
        if not cases or name in cases
    }


def bias(slot: SlotCalibration) -> float:
    """The gain that a gain is tested against: what identical code shows for sure, bounded; 0 where it may be none."""
    return min(MAX_BIAS, slot.bias.gain) if slot.bias.low > 0 else 0.0


def equivalence(slot: SlotCalibration) -> float:
    """The largest difference that "no difference" may leave possible, bounded."""
    return min(MAX_EQUIVALENCE, max(MIN_EQUIVALENCE, slot.equivalence))
