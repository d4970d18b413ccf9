"""The pairs of a performance suite, one by one: the evidence that the gate looked at."""

import math
from dataclasses import dataclass
from statistics import fmean

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.web.figures.axes import percent_lines
from swapbench.web.figures.svg import Scale, drawing, element, span
from swapbench.web.quantities import signed_percent
from workers.protocol import PairRecord, Performance

WIDTH, HEIGHT = 800, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 22, 34
LOOKS = (8, 12, 18, 24)


@dataclass(frozen=True)
class PairPoint:
    """A pair as a point: its mean log-ratio over the cases, positive where head is faster."""

    index: int
    order: str
    phase: str
    log_ratio: float
    repeats: int

    @property
    def speedup(self) -> float:
        return math.expm1(self.log_ratio)


def pair_points(pairs: list[PairRecord]) -> list[PairPoint]:
    """The mean over cases of ln(base / head), per pair; pairs without a common case are left out."""
    points = []
    for pair in pairs:
        logs = [
            math.log(pair.base[case] / pair.head[case])
            for case in pair.base.keys() & pair.head.keys()
            if pair.base[case] > 0 and pair.head[case] > 0
        ]
        if logs:
            points.append(PairPoint(pair.index, pair.order, pair.phase, fmean(logs), len(pair.repeated)))
    return points


def pair_plot(performance: Performance) -> SafeString:
    """Speed-up of each pair in the order of measurement; AB pairs hollow, BA solid; looks and the confirming pairs marked."""
    points = pair_points(performance.pairs)
    if not points:
        return drawing(WIDTH, 40, [element("text", _("No pairs were measured."), x=8, y=24)], label=_("No pairs"))
    low, high = span((point.speedup for point in points), around=0.0, least=0.04, margin=0.1)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x = Scale(0.25, len(points) + 0.75, LEFT, WIDTH - RIGHT)
    stopping = sum(point.phase == "stop" for point in points)
    parts = []
    if stopping < len(points):
        left = x(stopping + 0.5)
        parts.append(
            element(
                "rect",
                class_="band",
                x=left,
                y=TOP - 12,
                width=round(x.stop - left, 2),
                height=HEIGHT - BOTTOM - TOP + 12,
            )
        )
        parts.append(element("text", _("confirming pairs"), x=left + 6, y=TOP))
    parts += percent_lines(y, LEFT, WIDTH - RIGHT, about=4)
    for look in LOOKS:
        if look <= stopping:
            at = x(look + 0.5)
            parts.append(element("line", class_="look", x1=at, x2=at, y1=TOP + 6, y2=HEIGHT - BOTTOM))
            parts.append(element("text", _("look"), x=at - 4, y=TOP + 4, text_anchor="end"))
    if performance.speedup is not None and stopping < len(points):
        at = y(y.clamp(performance.speedup.estimate))
        parts.append(element("line", class_="line", x1=x(stopping + 0.5), x2=x.stop, y1=at, y2=at))
    for position, point in enumerate(points, start=1):
        title = _("Pair %(index)d, %(order)s: %(speedup)s") % {
            "index": point.index + 1,
            "order": point.order,
            "speedup": signed_percent(point.speedup),
        }
        if point.repeats:
            title += " " + _("(measured again %(count)d times: the machine was disturbed)") % {"count": point.repeats}
        parts.append(
            element(
                "circle",
                element("title", title),
                class_="solid" if point.order == "BA" else "hollow",
                cx=x(position),
                cy=y(point.speedup),
                r=4.5,
            )
        )
        if len(points) <= 12 or position % 4 == 0 or position == 1:
            parts.append(element("text", position, x=x(position), y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    parts.append(
        element("text", _("pair, in the order of measurement"), x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end")
    )
    ahead = sum(point.log_ratio > 0 for point in points)
    label = _("Speed-up of each of %(count)d pairs; head was faster in %(ahead)d") % {
        "count": len(points),
        "ahead": ahead,
    }
    return drawing(WIDTH, HEIGHT, parts, label=label, class_="fig still")
