"""One case through the history of main: time per call at each merge, with its interval and where it changed."""

from dataclasses import dataclass
from datetime import datetime

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.web.figures.svg import Scale, drawing, element, span, ticks
from swapbench.web.quantities import seconds

WIDTH, HEIGHT = 480, 150
LEFT, RIGHT, TOP, BOTTOM = 60, 14, 12, 24


@dataclass(frozen=True)
class SeriesPoint:
    """A measurement of a case on main, in seconds per call; `low` and `high` where the spread is known."""

    at: datetime
    label: str
    seconds: float
    low: float | None = None
    high: float | None = None
    changed: bool = False


def series_plot(name: str, points: list[SeriesPoint]) -> SafeString:
    """Points in order of merge, equally spaced; the shaded band is the spread, a dashed line marks a change point."""
    if not points:
        return drawing(WIDTH, 40, [element("text", _("Not measured yet."), x=8, y=24)], label=name)
    values = [value for point in points for value in (point.seconds, point.low, point.high) if value is not None]
    low, high = span(values, least=max(values) * 0.05 or 1e-9, margin=0.12)
    low = max(low, 0.0)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x = Scale(0, max(len(points) - 1, 1), LEFT + 10, WIDTH - RIGHT)
    parts = []
    for value in ticks(low, high, about=3):
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value)))
        parts.append(element("text", seconds(value), x=LEFT - 6, y=y(value) + 4, text_anchor="end"))
    banded = [(index, point.low, point.high) for index, point in enumerate(points) if point.low is not None and point.high is not None]
    if len(banded) > 1:
        upper = " ".join(f"{x(index)},{y(top)}" for index, _low, top in banded)
        lower = " ".join(f"{x(index)},{y(bottom)}" for index, bottom, _high in reversed(banded))
        parts.append(element("polygon", class_="spread", points=f"{upper} {lower}"))
    for index, point in enumerate(points):
        if point.changed:
            at = round(x(index - 0.5), 2)
            parts.append(element("line", class_="change", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM))
    parts.append(element("polyline", class_="line", points=" ".join(f"{x(index)},{y(point.seconds)}" for index, point in enumerate(points))))
    for index, point in enumerate(points):
        title = element("title", f"{point.label}: {seconds(point.seconds)}")
        parts.append(element("circle", title, class_="solid", cx=x(index), cy=y(point.seconds), r=3))
    parts.append(element("text", points[0].label, x=x(0), y=HEIGHT - 6, text_anchor="start" if len(points) > 1 else "middle"))
    if len(points) > 1:
        parts.append(element("text", points[-1].label, x=x(len(points) - 1), y=HEIGHT - 6, text_anchor="end"))
    label = _("%(name)s: from %(first)s to %(last)s over %(count)d measurements") % {
        "name": name,
        "first": seconds(points[0].seconds),
        "last": seconds(points[-1].seconds),
        "count": len(points),
    }
    return drawing(WIDTH, HEIGHT, parts, label=label, class_="fig still")
