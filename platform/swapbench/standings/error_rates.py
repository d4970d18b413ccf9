"""How often the judge is wrong: what was calibrated on each machine class, and what identical code has shown there since."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import msgspec
import numpy as np

from engine.slots.header import kind_of_path
from swapbench.submissions.models import Attempt, Result, Verdict
from workers import calibrations
from workers.calibrations import BankedPair, Calibration, SlotCalibration
from workers.protocol import PairRecord
from workers.statistics import Estimate, LogRatios, estimate, robust_deviation

LATEST_ROWS = 16_000
"""Rows of results that are looked back over: some 2,000 pairs of four cases."""
SHOWN = 200
"""Latest pairs that are drawn and estimated from: the exact interval of more would take long."""
ENOUGH = 6
"""The fewest pairs that a 95 % interval can be made from."""


@dataclass
class SamePair:
    """A pair in which both processes ran base, as the database has it: seconds by case of the two."""

    attempt: int
    path: str
    machine_class: str
    make: str
    suite_version: str
    kind: str
    at: datetime | None
    order: str
    base: dict[str, float] = field(default_factory=dict)
    head: dict[str, float] = field(default_factory=dict)

    @cached_property
    def log_ratio(self) -> float:
        """What the rule would go by."""
        return float(LogRatios.of([self]).gate[0])

    @property
    def speedup(self) -> float:
        return math.expm1(self.log_ratio)


@dataclass
class SlotErrors:
    """What is known of one kind of slot on one machine class."""

    kind: str
    calibrated: SlotCalibration | None = None
    pairs: list[SamePair] = field(default_factory=list)
    """Oldest first."""

    @cached_property
    def live(self) -> Estimate | None:
        """The difference that the latest pairs of identical code have shown; its truth is 0. None where so few have no 95 % interval."""
        logs = [pair.log_ratio for pair in self.shown]
        return estimate(logs) if len(logs) >= ENOUGH else None

    @cached_property
    def spread(self) -> float | None:
        """A pair's standard deviation among the latest."""
        logs = [pair.log_ratio for pair in self.shown]
        return robust_deviation(np.array(logs)) if len(logs) >= ENOUGH else None

    @property
    def shown(self) -> list[SamePair]:
        return self.pairs[-SHOWN:]


@dataclass
class MachineErrors:
    """One make of machine in a class: its calibration, if it has one, and its slots."""

    machine_class: str
    make: str = ""
    calibration: Calibration | None = None
    slots: dict[str, SlotErrors] = field(default_factory=dict)

    @property
    def facts(self) -> str:
        """What was calibrated, for a person."""
        return "" if self.calibration is None else f"{self.make}, torch {self.calibration.environment.get('torch', '')}"


def error_rates() -> list[MachineErrors]:
    """Every make of machine that was calibrated or has judged, by class. A file that is no calibration is left out."""
    found: dict[tuple[str, str], MachineErrors] = {}
    for name in calibrations.names():
        try:
            read = calibrations.read(name)
        except calibrations.CalibrationError:
            continue
        if read is not None:
            make = calibrations.make(read.environment)
            slots = {kind: SlotErrors(kind, slot) for kind, slot in read.slots.items()}
            found[read.machine_class, make] = MachineErrors(read.machine_class, make, read, slots)
    for same in latest():
        key = same.machine_class, same.make
        machine = found.setdefault(key, MachineErrors(*key))
        machine.slots.setdefault(same.kind, SlotErrors(same.kind)).pairs.append(same)
    return [found[key] for key in sorted(found)]


def latest() -> list[SamePair]:
    """The latest pairs of base with itself, oldest first."""
    columns = ("attempt_id", "path", "pair", "case", "side", "order", "seconds")
    of = ("attempt__machine_class", "attempt__make", "attempt__suite_version", "attempt__finished_at")
    rows = list(
        Result.objects.filter(phase="same", seconds__gt=0)
        .order_by("-attempt_id", "path", "pair", "case", "side")
        .values_list(*columns, *of)[:LATEST_ROWS]
    )
    found: dict[tuple[int, str, int], SamePair] = {}
    for attempt, path, pair, case, side, order, seconds, machine_class, make, suite_version, at in rows:
        kind = kind_of_path(path)
        if kind is None:
            continue
        key = attempt, path, pair
        if key not in found:
            found[key] = SamePair(attempt, path, machine_class, make, suite_version, kind, at, order)
        (found[key].base if side == Result.Side.BASE else found[key].head)[case] = seconds
    if len(rows) == LATEST_ROWS:
        # The oldest one may have been cut in the middle.
        found.pop(rows[-1][:3], None)
    return [found[key] for key in sorted(found) if found[key].base and found[key].base.keys() == found[key].head.keys()]


def banked() -> Iterator[BankedPair]:
    """What `swapbench calibrate --bank` can go on from: the latest pairs in which a slot's default met itself."""
    recorded = latest()
    # Only what was measured against the default has a place on its track by that measurement.
    against = {
        (attempt, path): name
        for attempt, path, name in Verdict.objects.filter(
            attempt__in={same.attempt for same in recorded}, track_speedup__isnull=False
        ).values_list("attempt_id", "path", "against")
    }
    workloads = dict(published_workloads({attempt for attempt, _ in against}))
    for same in recorded:
        name = against.get((same.attempt, same.path))
        if name is None:
            continue
        yield BankedPair(
            slot=same.kind,
            implementation=name,
            planted=0.0,
            pair=PairRecord(0, "AB" if same.order == "AB" else "BA", "same", same.base, same.head),
            seconds=0.0,
            machine_class=same.machine_class,
            suite_version=same.suite_version,
            at=same.at.timestamp() if same.at else 0.0,
            make=same.make,
            workload=workloads.get((same.attempt, same.path), ""),
        )


class _Measured(msgspec.Struct):
    """Of an outcome's performance, what its cases were made of."""

    workload: str = ""


class _Implementation(msgspec.Struct):
    path: str
    performance: _Measured | None = None


class _Outcome(msgspec.Struct):
    """Of an outcome, which holds every sample, no more than is asked for."""

    implementations: list[_Implementation] = []


def published_workloads(attempts: Collection[int]) -> Iterator[tuple[tuple[int, str], str]]:
    """By attempt and path, the digest of the cases that the outcome names."""
    for attempt, text in Attempt.objects.filter(pk__in=attempts).values_list("pk", "outcome").iterator(chunk_size=10):
        for found in msgspec.json.decode(text, type=_Outcome).implementations if text else ():
            if found.performance is not None:
                yield (attempt, found.path), found.performance.workload
