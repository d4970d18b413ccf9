"""The vertical axis that figures of speed-ups share."""

from django.utils.safestring import SafeString

from swapbench.web.figures.svg import Scale, element, ticks
from swapbench.web.quantities import signed_percent


def percent_lines(y: Scale, left: float, right: float, about: int) -> list[SafeString]:
    """Lines from `left` to `right` at round values of `y`, a scale of fractions, that of zero marked, each with its value in per cent."""
    parts = []
    for value in ticks(y.low, y.high, about=about):
        kind, at = "zero" if abs(value) < 1e-9 else "grid", y(value)
        parts.append(element("line", class_=kind, x1=left, x2=right, y1=at, y2=at))
        text = signed_percent(value, 0 if y.high - y.low > 0.06 else 1)
        parts.append(element("text", text, x=left - 8, y=at + 4, text_anchor="end"))
    return parts
