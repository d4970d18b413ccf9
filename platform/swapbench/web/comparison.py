"""Two submissions side by side, case by case. Pure.

Each was measured against its own base in its own attempt, so seconds of the two must not be divided by each other: a
machine differs from day to day. What can be compared is each one's speed-up over the same baseline; the interval of
their ratio follows from the two intervals on the log scale, whose half-widths add as squares.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.protocol import CaseSpeed, Interval


@dataclass(frozen=True)
class CaseComparison:
    """`ratio` is how much faster head is than base; None where only one of them was measured on the case."""

    case: str
    base: CaseSpeed | None
    head: CaseSpeed | None
    ratio: Interval | None


def ratio_of(base: Interval, head: Interval) -> Interval | None:
    """How much faster head is than base, from their speed-ups over the same baseline; None where one is -100 % or less."""
    ends = (base.low, base.estimate, base.high, head.low, head.estimate, head.high)
    if any(end <= -1 or not math.isfinite(end) for end in ends):
        return None
    center = math.log1p(head.estimate) - math.log1p(base.estimate)

    def half(interval: Interval) -> float:
        return (math.log1p(interval.high) - math.log1p(interval.low)) / 2

    width = math.hypot(half(base), half(head))
    return Interval(
        math.expm1(center), math.expm1(center - width), math.expm1(center + width), min(base.level, head.level)
    )


def compared(base: Sequence[CaseSpeed], head: Sequence[CaseSpeed]) -> list[CaseComparison]:
    """The cases of both in the order of base; cases that only head has come last."""
    left = {case.case: case for case in base}
    right = {case.case: case for case in head}
    rows = []
    for name in [*left, *(name for name in right if name not in left)]:
        one, other = left.get(name), right.get(name)
        ratio = ratio_of(one.speedup, other.speedup) if one is not None and other is not None else None
        rows.append(CaseComparison(name, one, other, ratio))
    return rows
