"""What a whole gains by one of its parts."""

import math

from workers.statistics.signed_rank import Estimate

SHARE_MISSES = 0.05
"""How often the interval of a share does not hold it."""


def of_whole(part: Estimate, share: float, share_interval: tuple[float, float] | None = None) -> Estimate:
    """The speed-up of something of whose time a part that became faster took `share`: 1 / ((1 - share) + share / (1 + gain)) - 1.

    Amdahl, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS 30, 1967. The interval holds
    whatever is possible where both the part's gain and the share are within theirs, so that it is wrong no more often than the two
    together (Bonferroni), which is its level. `share_interval`: that of a share that was measured, at 95 %; without it the share is taken to be
    known. Raises ValueError for a share that is not within [0, 1].
    """
    low, high = share_interval or (share, share)
    level = max(0.0, part.level - SHARE_MISSES) if share_interval else part.level
    if not all(math.isfinite(each) and 0.0 <= each <= 1.0 for each in (share, low, high)):
        raise ValueError(f"A part takes between none and all of the time, not {share} [{low}, {high}] of it.")

    def whole(gain: float, share: float) -> float:
        return 1.0 / ((1.0 - share) + share / (1.0 + gain)) - 1.0

    possible = [whole(gain, each) for gain in (part.low, part.high) for each in (low, high)]
    return Estimate(whole(part.gain, share), min(possible), max(possible), level, part.pairs)
