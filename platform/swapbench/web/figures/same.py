"""Pairs of identical code, one after the other: what the machine makes of no difference."""

from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from swapbench.standings.error_rates import SlotErrors
from swapbench.web.figures.axes import percent_lines
from swapbench.web.figures.svg import Scale, drawing, element, span
from swapbench.web.quantities import signed_percent

WIDTH, HEIGHT = 800, 170
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 26


def same_plot(slot: SlotErrors) -> SafeString:
    """The difference that each of the latest pairs showed; the band holds two standard deviations to both sides of zero."""
    points = slot.shown
    spread = slot.calibrated.spread if slot.calibrated is not None else slot.spread or 0.0
    low, high = span((point.speedup for point in points), around=0.0, least=max(0.04, 5 * spread), margin=0.08)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    x = Scale(0.25, len(points) + 0.75, LEFT, WIDTH - RIGHT)
    top, bottom = y(y.clamp(2 * spread)), y(y.clamp(-2 * spread))
    parts = [
        element("rect", class_="band", x=LEFT, y=top, width=WIDTH - RIGHT - LEFT, height=round(bottom - top, 2)),
    ]
    parts += percent_lines(y, LEFT, WIDTH - RIGHT, about=4)
    for position, point in enumerate(points, start=1):
        title = _("Attempt %(attempt)d: %(difference)s") % {
            "attempt": point.attempt,
            "difference": signed_percent(point.speedup),
        }
        parts.append(
            element("circle", element("title", title), class_="solid", cx=x(position), cy=y(point.speedup), r=3.5)
        )
    parts.append(
        element("text", _("pair, in the order of measurement"), x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end")
    )
    inside = sum(abs(point.speedup) <= 2 * spread for point in points)
    label = _("Of %(count)d pairs of identical code %(inside)d differ by no more than two standard deviations") % {
        "count": len(points),
        "inside": inside,
    }
    return drawing(WIDTH, HEIGHT, parts, label=label, class_="fig still")
