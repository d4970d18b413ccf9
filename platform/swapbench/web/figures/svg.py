"""The small vocabulary that the server-made figures share: a linear scale, ticks, and escaped elements."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from django.utils.html import conditional_escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly onto pixels [start, stop]; values outside are clamped by `clamp` only."""

    low: float
    high: float
    start: float
    stop: float

    do_not_call_in_templates: ClassVar[bool] = True

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 2)

    def clamp(self, value: float) -> float:
        return min(max(value, self.low), self.high)


def span(
    values: Iterable[float], *, around: float | None = None, least: float, margin: float = 0.06
) -> tuple[float, float]:
    """A range that holds the finite values (and `around`), at least `least` wide, with a margin on both sides."""
    finite = [value for value in values if math.isfinite(value)]
    if around is not None:
        finite.append(around)
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    if high - low < least:
        middle = (low + high) / 2
        low, high = middle - least / 2, middle + least / 2
    pad = (high - low) * margin
    return low - pad, high + pad


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between low and high, at steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / max(about, 1)
    if not math.isfinite(raw) or raw <= 0:
        return []
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def element(name: str, content: object = "", /, **attributes: object) -> SafeString:
    """An SVG element. Attribute names are given with underscores; content is escaped unless it is safe."""
    pairs = format_html_join(
        "", ' {}="{}"', ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    )
    return format_html("<{}{}>{}</{}>", mark_safe(name), pairs, content, mark_safe(name))


def joined(parts: Iterable[object]) -> SafeString:
    return mark_safe("".join(conditional_escape(part) for part in parts))


def drawing(
    width: int, height: int, parts: Iterable[object], *, label: str, class_: str = "fig", stretch: bool = False
) -> SafeString:
    """The <svg>: named for screen readers by `label`. `stretch` fills its box instead of keeping proportions."""
    attributes: dict[str, object] = {
        "class_": class_,
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria_label": label,
        "focusable": "false",
    }
    if stretch:
        attributes["preserveAspectRatio"] = "none"
    else:
        attributes |= {"width": width, "height": height}
    return element("svg", joined(parts), **attributes)
