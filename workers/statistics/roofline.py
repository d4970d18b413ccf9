"""What no machine can do: a time below its physical floor is an error or a fraud, not a record."""

import math


def impossible(
    measured_seconds: float,
    bytes_moved: float,
    flops: float,
    peak_bytes_per_s: float,
    peak_flops_per_s: float,
    slack: float = 0.0,
) -> str | None:
    """Why a time cannot be true, or None if it can.

    A call that must move `bytes_moved` and do `flops` takes at least max(bytes / bandwidth, flops / rate): the roofline (Williams,
    Waterman & Patterson, CACM 52, 2009). The caller states the peaks of the level of memory that the data fit in, and the least
    bytes and FLOPs that the declared bits and the mask leave. `slack` is the fraction by which the peaks may be understated. Raises
    ValueError for a negative amount or a peak that is not positive.
    """
    if min(bytes_moved, flops, slack) < 0 or min(peak_bytes_per_s, peak_flops_per_s) <= 0:
        raise ValueError("The least bytes, FLOPs and slack must be at least 0, and the peaks positive.")
    if not math.isfinite(measured_seconds) or measured_seconds <= 0:
        return f"A call cannot take {measured_seconds} s."
    by_memory = bytes_moved / peak_bytes_per_s / (1 + slack)
    by_arithmetic = flops / peak_flops_per_s / (1 + slack)
    if measured_seconds >= max(by_memory, by_arithmetic):
        return None
    if by_memory >= by_arithmetic:
        needed, work, peak, unit = by_memory, bytes_moved, peak_bytes_per_s, "B"
    else:
        needed, work, peak, unit = by_arithmetic, flops, peak_flops_per_s, "FLOP"
    return (
        f"{_si(measured_seconds)}s is below the physical floor of {_si(needed)}s: the call must "
        f"{'move' if unit == 'B' else 'do'} at least {_si(work)}{unit}, and this machine's peak is {_si(peak)}{unit}/s."
    )


def _si(value: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value / 1e-9:.3g} n"
