"""How the chance of a false gate is shared out: over the looks of one attempt, and over an author's tries on a track."""

import math
from collections.abc import Sequence

from workers.statistics.signed_rank import attainable


def pocock_like(alpha: float, fraction: float) -> float:
    """The error that may be spent once `fraction` of the pairs is in: alpha ln(1 + (e - 1) t).

    Lan & DeMets, Biometrika 70, 1983. Of their two functions this one spends early. That is right here: a gain is always
    confirmed by fresh pairs, so an early stop costs no honesty, and it saves the contributor minutes.
    """
    return alpha * math.log1p((math.e - 1) * min(1.0, max(0.0, fraction)))


def look_levels(alpha: float, looks: Sequence[int]) -> dict[int, float]:
    """The level at which each look (a number of pairs, ascending) may reject; they add up to at most `alpha`.

    By the union bound the chance that any look rejects falsely is at most their sum, whatever the dependence between looks: nothing
    is assumed of the noise. A test over coin flips attains only certain levels; what a look cannot use of its share is
    handed on to the next. A look that can attain none has level 0.
    """
    levels: dict[int, float] = {}
    spent = 0.0
    for look in looks:
        level = attainable(look, pocock_like(alpha, look / looks[-1]) - spent)
        levels[look] = level
        spent += level
    return levels


def alpha_for_try(alpha: float, attempt: int) -> float:
    """The level of an author's `attempt`-th try (from 1) on one track: alpha * 6 / (pi^2 k^2).

    The series adds up to `alpha` over infinitely many tries (Euler, 1735), so resubmitting until lucky gains nothing: the
    chance that any of them gates falsely stays below `alpha`. Raises ValueError if `attempt` < 1.
    """
    if attempt < 1:
        raise ValueError(f"Tries are counted from 1; this is try {attempt}.")
    return alpha * 6 / (math.pi * attempt) ** 2
