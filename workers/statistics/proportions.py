"""Intervals for a rate: how far k hits of n can be trusted."""

import math
from collections.abc import Callable
from statistics import NormalDist


def wilson(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, JASA 22, 1927): its mean coverage is close to `level`.

    For shares that are shown, such as top-1 agreement. Of nothing, nothing is known: (0, 1). Raises ValueError if not 0 <= hits <= total.
    """
    _check(hits, total)
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = hits / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if hits == 0 else (centre - half) / scale
    high = 1.0 if hits == total else (centre + half) / scale
    return low, high


def clopper_pearson(hits: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper & Pearson, Biometrika 26, 1934): its coverage is never below `level`.

    For rates that are promised, such as false gates. Found by bisection on the binomial tail. Raises ValueError as `wilson` does.
    """
    _check(hits, total)
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _root(lambda p: _upper_tail(hits, total, p) - tail)
    high = 1.0 if hits == total else _root(lambda p: tail - (1 - _upper_tail(hits + 1, total, p)))
    return low, high


def _check(hits: int, total: int) -> None:
    if not 0 <= hits <= total:
        raise ValueError(f"{hits} hits of {total} are no proportion: expected 0 <= hits <= total.")


def _upper_tail(hits: int, total: int, p: float) -> float:
    """P(X >= hits) of a binomial X. Summed from the likelier side's complement where that has fewer terms."""
    if hits > total - hits + 1:
        return math.fsum(_mass(k, total, p) for k in range(hits, total + 1))
    return 1 - math.fsum(_mass(k, total, p) for k in range(hits))


def _mass(hits: int, total: int, p: float) -> float:
    ways = math.lgamma(total + 1) - math.lgamma(hits + 1) - math.lgamma(total - hits + 1)
    return math.exp(ways + hits * math.log(p) + (total - hits) * math.log1p(-p))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
