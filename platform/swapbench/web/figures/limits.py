"""A measured quality against the limits of the classes."""

import math

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.web.figures.svg import Scale, drawing, element
from swapbench.web.wording import Metric

WIDTH, HEIGHT = 240, 22


def loss(metric: Metric, value: float) -> float:
    """How far a value is from perfect, as a fraction that is small when good: 1 - recall, or |ΔPPL| where it is worse."""
    return max(value, 0.0) if metric.worse == "more" else max(1.0 - value, 0.0)


def meets(metric: Metric, value: float, quality_class: str) -> bool | None:
    """Whether the value is within the class's limit; None where the class has no constant limit on this metric."""
    limit = metric.limits.get(quality_class)
    if limit is None or not math.isfinite(value):
        return None
    return value <= limit if metric.worse == "more" else value >= limit


def limit_bar(metric: Metric, value: float, quality_class: str) -> SafeString:
    """A bar of the measured loss with ticks at the classes' limits; the declared class's tick is the strong one.

    The root scale keeps limits that lie two orders of magnitude apart (0.1 % and 6.5 %) readable side by side.
    """
    losses = {name: loss(metric, limit) for name, limit in metric.limits.items()}
    own = losses.get(quality_class)
    measured = loss(metric, value) if math.isfinite(value) else 0.0
    top = max([own * 1.6 if own else max(losses.values()), min(measured, max(losses.values()) * 1.5)])
    scale = Scale(0.0, math.sqrt(top), 0, WIDTH)
    held = meets(metric, value, quality_class)
    mood = "accent" if held is None else "good" if held else "bad"
    length = scale(min(math.sqrt(measured), scale.high))
    parts = [
        element("rect", class_="track", x=0, y=8, width=WIDTH, height=6, rx=3),
        element("rect", class_=f"bar {mood}", x=0, y=8, width=max(length, 2), height=6, rx=3),
    ]
    for name, limit in losses.items():
        at = scale(math.sqrt(limit))
        if at <= WIDTH and (name == quality_class or own is None):
            parts.append(element("line", class_="limit", x1=at, x2=at, y1=4, y2=18))
    words = {True: _("within the limit"), False: _("beyond the limit"), None: _("no fixed limit for this class")}
    return drawing(WIDTH, HEIGHT, parts, label=words[held], class_="fig inline")
