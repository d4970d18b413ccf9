"""What a machine class has been found to tell apart, as `swapbench calibrate` wrote it and as the rule of an attempt uses it. Torch-free."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from workers.protocol import Fraction, PairRecord
from workers.statistics import Estimate, Rate

ROOT = Path(__file__).resolve().parent.parent
MIN_FLOOR, MAX_FLOOR = 0.005, 0.10
# Below 2 % nobody asks whether two things differ, and telling it takes twice the pairs and fails in one of ten attempts.
MIN_EQUIVALENCE, MAX_EQUIVALENCE = 0.02, 0.10
MAX_BIAS = 0.01


Phase = Literal["prefill", "decode"]


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
    false_losses: Rate | None = None
    """How often the rule calls identical code slower, which fails it; None where it was not learned."""
    suite_versions: int = 1
    """How many versions of the suites the pairs were measured by."""
    workload: str = ""
    """Digest of the cases; "" where nobody wrote it down, so that it counts for none."""
    planted: list[Planted] = []
    attempts: WholeAttempts | None = None


class Share(msgspec.Struct, frozen=True):
    """How much of a step one module takes, with its 95 % interval."""

    share: Fraction
    low: Fraction
    high: Fraction
    rounds: int
    code: str = ""
    """Digest of the module's file: another one under its name takes another share; "" where nobody wrote it down, so that it counts for none."""


class StepShares(msgspec.Struct, frozen=True):
    """A step of a whole model: what it takes, and by slot and module which share of it is theirs."""

    step: str
    phase: Phase
    milliseconds: float
    shares: dict[str, dict[str, Share]]
    measured_on: str


class Calibration(msgspec.Struct, frozen=True):
    """A machine class: its facts when it was calibrated, its slots, and the steps of models that slots are parts of."""

    machine_class: str
    measured_on: str
    """Date in UTC, ISO 8601."""
    environment: dict[str, str | float]
    slots: dict[str, SlotCalibration]
    steps: list[StepShares] = []


class BankedPair(msgspec.Struct, frozen=True, tag="pair", omit_defaults=True):
    """One pair. `planted` is the share of its own time that base spins; 0 where both sides are the same code. `seconds` 0: not known.

    `make`: see `make`; "" where nobody wrote it down, so that it counts for none. `workload`: the digest of the cases.
    """

    slot: str
    implementation: str
    planted: float
    pair: PairRecord
    seconds: float
    machine_class: str
    suite_version: str
    at: float
    make: str = ""
    workload: str = ""


class BankedAttempt(msgspec.Struct, frozen=True, tag="attempt", omit_defaults=True):
    """One whole attempt on identical code."""

    slot: str
    implementation: str
    status: str
    decision: str
    seconds: float
    machine_class: str
    suite_version: str
    at: float
    make: str = ""
    workload: str = ""
    """The digest of the cases; of an attempt that was banked before it was written down, empty."""


Banked = BankedPair | BankedAttempt


class CalibrationError(Exception):
    """A calibration file cannot be read; `str(error)` says which and why."""


def folder() -> Path:
    """Where calibrations lie: `SWAPBENCH_CALIBRATION`, else calibration/ beside the code."""
    return Path(os.environ.get("SWAPBENCH_CALIBRATION") or ROOT / "calibration")


def file_name(machine_class: str, facts: Mapping[str, str | float]) -> str:
    """The name of the file, without its ending, for such a machine: different makes may share a class."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", make(facts).lower()))
    return ".".join([machine_class, "-".join(words)] if words else [machine_class])


def read(name: str) -> Calibration | None:
    """The calibration in the file NAME.json; None where there is none. Raises CalibrationError for a file that is no calibration."""
    return read_file(folder() / f"{name}.json")


def read_file(path: Path) -> Calibration | None:
    """The calibration in a file; None where there is none. Raises CalibrationError for a file that is no calibration."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CalibrationError(
            f"{path} cannot be used: {error}. Mend it, or take it away and make it anew by `swapbench calibrate`."
        ) from None


def names() -> list[str]:
    """The files that there are, without their endings."""
    return sorted(path.stem for path in folder().glob("*.json"))


def of_machine(machine_class: str, facts: Mapping[str, str | float], within: Path | None = None) -> Calibration | None:
    """What was measured on machines of this class and of the make that `facts` tell of. Raises CalibrationError.

    within: the folder; that of attempts where none is given.
    """
    # Files were named after the class alone before makes had their own.
    for name in (file_name(machine_class, facts), machine_class):
        found = read_file((within or folder()) / f"{name}.json")
        if found is not None and found.machine_class == machine_class and make(found.environment) == make(facts):
            return found
    return None


def slot_of(machine_class: str, kind: str, facts: Mapping[str, str | float], workload: str) -> SlotCalibration | None:
    """What is known of a slot's published cases on such a machine, if anything: what another make can tell apart, this one may not, nor what other cases can.

    workload: the digest of the cases as they are published.
    """
    found = of_machine(machine_class, facts)
    slot = None if found is None else found.slots.get(kind)
    return slot if slot is not None and workload and slot.workload == workload else None


def make(facts: Mapping[str, str | float]) -> str:
    """What tells makes of machines apart: the accelerator's name, else the processor's; "" where neither is known."""
    return str(facts.get("accelerator") or facts.get("processor") or "")[:120]


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


def phase_of(case: str) -> Phase | None:
    """The phase of a model's work that a case stands for, by its name; None for one that mixes them, and for norms of heads, which many models have none of."""
    if case.startswith("prefill"):
        return "prefill"
    return "decode" if case.startswith(("decode", "gemv")) else None


def cases_of(cases: Sequence[str], phase: Phase) -> list[int]:
    """Which of these cases are of a phase."""
    return [number for number, case in enumerate(cases) if phase_of(case) == phase]


def code_of(file: Path) -> str:
    """A digest of a slot file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
