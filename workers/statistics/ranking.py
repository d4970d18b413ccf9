"""Many comparisons at once: Holm where a claim is made, Benjamini-Hochberg where something is only shown, tiers for ranks."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import msgspec

from workers.statistics.signed_rank import Estimate


class Tier(msgspec.Struct, frozen=True):
    """A rank and whether others share it; `label` is "2=" where they do."""

    rank: int
    shared: bool

    @property
    def label(self) -> str:
        return f"{self.rank}=" if self.shared else str(self.rank)


def holm(ps: Sequence[float]) -> list[float]:
    """The adjusted p-values, in the order given: rejecting those <= alpha makes any false claim with at most chance alpha.

    Holm, Scandinavian Journal of Statistics 6, 1979. Valid under any dependence.
    """
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """The q-values, in the order given: of those <= q, on average at most a share of q is false.

    Benjamini & Hochberg, JRSS B 57, 1995; valid for independent or positively dependent tests. For display only: nothing gates on it.
    """
    adjusted = [0.0] * len(ps)
    lowest = 1.0
    descending = sorted(range(len(ps)), key=ps.__getitem__, reverse=True)
    for position, index in enumerate(descending):
        lowest = min(lowest, ps[index] * len(ps) / (len(ps) - position))
        adjusted[index] = lowest
    return adjusted


def better_than(entries: Mapping[str, Estimate]) -> dict[tuple[str, str], float]:
    """One-sided p-values of "the first is faster than the second" for all ordered pairs of entries measured apart.

    Each entry's speed-up is over the same baseline in an attempt of its own, so the difference of two log speed-ups is set against the root of
    their summed squared standard errors; the standard error is the interval's half-width over the normal quantile of its level
    (Lehmann, Annals of Mathematical Statistics 34, 1963). Contenders that were measured head to head have an exact p-value of
    their own (`sign_flip_p`), which should replace the one given here.
    """
    normal = NormalDist()
    centre = {name: math.log1p(entry.gain) for name, entry in entries.items()}
    error = {
        name: (math.log1p(entry.high) - math.log1p(entry.low)) / (2 * normal.inv_cdf(0.5 + entry.level / 2))
        for name, entry in entries.items()
    }
    ps = {}
    for one in entries:
        for other in entries:
            if one == other:
                continue
            difference = centre[one] - centre[other]
            spread = math.hypot(error[one], error[other])
            if spread > 0:
                ps[one, other] = normal.cdf(-difference / spread)
            else:
                ps[one, other] = 0.0 if difference > 0 else 1.0
    return ps


def tiers(names: Sequence[str], p_better: Mapping[tuple[str, str], float], alpha: float = 0.05) -> dict[str, Tier]:
    """Ranks by significance, best first: rank = 1 + the number of entries significantly better; equals share a rank.

    `p_better[a, b]` is the one-sided p-value of "a is better than b"; a pair without one is not told apart. Both directions of a
    pair are one hypothesis (p = 2 min), and Holm's procedure over all pairs keeps the chance of any wrong order within `alpha`.
    Entries of one rank keep the order of `names`. Raises ValueError for a name given twice.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"Names must be distinct to be ranked; got {', '.join(names)}.")
    duels: list[tuple[str, str]] = []
    ps: list[float] = []
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            forward, backward = p_better.get((one, other), 1.0), p_better.get((other, one), 1.0)
            if (one, other) in p_better or (other, one) in p_better:
                duels.append((one, other) if forward <= backward else (other, one))
                ps.append(min(1.0, 2 * min(forward, backward)))
    beaten = dict.fromkeys(names, 0)
    for (_, loser), p in zip(duels, holm(ps), strict=True):
        beaten[loser] += p <= alpha
    ranks = {name: 1 + count for name, count in sorted(beaten.items(), key=lambda item: item[1])}
    ordered = list(ranks.values())
    return {name: Tier(rank, ordered.count(rank) > 1) for name, rank in ranks.items()}
