"""How numbers are written: always with a unit, and with an interval where there is one. Pure text, no HTML."""

import math

from workers.protocol import Interval

THIN = "\u202f"
MINUS = "\u2212"
NOTHING = "–"


def signed_percent(fraction: float, digits: int = 1) -> str:
    """A fraction as per cent with its sign: 0.123 gives "+12.3 %". A true minus sign, so that columns line up."""
    if not math.isfinite(fraction):
        return NOTHING
    text = f"{abs(fraction) * 100:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return f"{text}{THIN}%"
    return f"{'+' if fraction > 0 else MINUS}{text}{THIN}%"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as per cent: 0.987 gives "98.7 %"."""
    if not math.isfinite(fraction):
        return NOTHING
    return f"{_minus(f'{fraction * 100:,.{digits}f}')}{THIN}%"


def interval_range(interval: Interval, digits: int = 1) -> str:
    """The ends of an interval of fractions: "+10.1 … +14.4 %"."""
    low, high = signed_percent(interval.low, digits), signed_percent(interval.high, digits)
    return f"{low.removesuffix(f'{THIN}%')} … {high}"


def seconds(value: float) -> str:
    """A time per call, in the unit that leaves three digits: "1.23 ms", "47.1 µs"."""
    if not math.isfinite(value):
        return NOTHING
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(value) >= size:
            return f"{_three_digits(value / size)}{THIN}{unit}"
    return f"{_three_digits(value / 1e-9)}{THIN}ns"


def duration(value: float) -> str:
    """A time that a person waits: "0.4 s", "48 s", "2 min 14 s", "3 h 05 min"."""
    if not math.isfinite(value) or value < 0:
        return NOTHING
    if value < 10:
        return f"{value:.1f}{THIN}s"
    whole = round(value)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def size(value: float) -> str:
    """Bytes in binary units: "1.50 MiB"."""
    if not math.isfinite(value):
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:,.0f}{THIN}B" if unit == "B" else f"{_three_digits(value)}{THIN}{unit}"
        value /= 1024
    return f"{_three_digits(value)}{THIN}TiB"


def probability(value: float) -> str:
    """A p-value: "p = 0.012", or "p < 0.001" where more digits would say nothing."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def plain(value: float) -> str:
    """A figure without a scale of its own, to three significant digits: "12.4", "0.0024", "2.1 × 10⁻⁶"."""
    if not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return _minus(f"{int(value):,}")
    if abs(value) < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{_minus(mantissa)}{THIN}×{THIN}10{power}"
    if abs(value) < 1:
        return _minus(f"{value:.3g}")
    return _three_digits(value)


def exact(value: float) -> str:
    """A number of a tensor, with the digits that tell a right one from a wrong one."""
    return _minus(f"{value:.6g}")


def figure(name: str, value: float) -> str:
    """A figure of `ImplementationOutcome.figures` with the unit that its name tells."""
    if "bytes" in name:
        return size(value)
    if "seconds" in name:
        return duration(value)
    if "ratio" in name:
        return f"{_three_digits(value)}{THIN}×"
    if "bits" in name:
        return f"{_three_digits(value)}{THIN}bit"
    if "share" in name or "density" in name:
        return percent(value)
    return plain(value)


def _three_digits(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return _minus(f"{value:,.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
