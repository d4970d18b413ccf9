"""Speed-ups as estimates with intervals: one row of a table, the axis above the rows."""

from collections.abc import Iterable

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.web.figures.svg import Scale, drawing, element, span, ticks
from swapbench.web.quantities import interval_range, signed_percent
from workers.protocol import Interval

WIDTH, HEIGHT, EDGE = 240, 22, 8


def shared_scale(intervals: Iterable[Interval]) -> Scale:
    """One scale for all rows of a table, so that lengths can be compared; zero is always on it."""
    ends = [value for interval in intervals for value in (interval.low, interval.high, interval.estimate)]
    low, high = span((min(max(end, -1.0), 20.0) for end in ends), around=0.0, least=0.04)
    return Scale(low, high, EDGE, WIDTH - EDGE)


def tone(interval: Interval) -> str:
    """Colour only where the interval leaves zero out."""
    if interval.low > 0:
        return "good"
    if interval.high < 0:
        return "bad"
    return ""


def interval_row(interval: Interval, scale: Scale) -> SafeString:
    """The interval as a whisker with its estimate as a dot, against a line at zero. Arrows mark what lies beyond the scale."""
    middle = HEIGHT / 2
    low, high = scale.clamp(interval.low), scale.clamp(interval.high)
    parts = [
        element("line", class_="zero", x1=scale(0), x2=scale(0), y1=0, y2=HEIGHT),
        element("line", class_=f"whisker {tone(interval)}", x1=scale(low), x2=scale(high), y1=middle, y2=middle),
    ]
    if interval.low < scale.low:
        parts.append(element("path", class_="beyond", d=f"M{scale.start - 7} {middle}l6 -4v8z"))
    if interval.high > scale.high:
        parts.append(element("path", class_="beyond", d=f"M{scale.stop + 7} {middle}l-6 -4v8z"))
    parts.append(
        element("circle", class_=f"dot {tone(interval)}", cx=scale(scale.clamp(interval.estimate)), cy=middle, r=4)
    )
    label = _("%(estimate)s, %(level)d %% interval %(range)s") % {
        "estimate": signed_percent(interval.estimate),
        "level": round(interval.level * 100),
        "range": interval_range(interval),
    }
    return drawing(WIDTH, HEIGHT, parts, label=label, class_="fig inline")


def interval_axis(scale: Scale) -> SafeString:
    """The axis of `interval_row`, for the head of the table's column."""
    parts: list[SafeString] = []
    for value in ticks(scale.low, scale.high, about=3):
        x = scale(value)
        parts.append(element("line", class_="zero" if abs(value) < 1e-9 else "grid", x1=x, x2=x, y1=16, y2=HEIGHT))
        text = signed_percent(value, 0 if abs(scale.high - scale.low) > 0.06 else 1)
        parts.append(element("text", text, x=x, y=12, text_anchor="middle"))
    return drawing(WIDTH, HEIGHT, parts, label=_("Speed-up in per cent"), class_="fig inline")
