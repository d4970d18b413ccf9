"""What a whole gains by one of its parts."""

import math

from workers.statistics.signed_rank import Estimate


def of_whole(part: Estimate, share: float) -> Estimate:
    """The speed-up of something of whose time a part that became faster took `share`: 1 / ((1 - share) + share / (1 + gain)) - 1.

    Amdahl, Validity of the single processor approach to achieving large scale computing capabilities, AFIPS 30, 1967. It grows with the
    part's speed-up, so that the interval's ends are those of the part's. Raises ValueError for a share that is not within [0, 1].
    """
    if not (math.isfinite(share) and 0.0 <= share <= 1.0):
        raise ValueError(f"A part takes between none and all of the time, not {share} of it.")

    def whole(gain: float) -> float:
        return 1.0 / ((1.0 - share) + share / (1.0 + gain)) - 1.0

    return Estimate(whole(part.gain), whole(part.low), whole(part.high), part.level, part.pairs)
