"""What a machine class can tell apart, learned from pairs in which both sides were the same code.

A bank of such A/A pairs, measured one after the other, is resampled into whole attempts: runs of adjacent pairs, so that drift and bursts
stay together, with the sides as they were measured, so that a bias stays in (circular block bootstrap: Politis & Romano,
in LePage & Billard, Exploring the Limits of Bootstrap, 1992). The real rule decides each of them.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from workers.statistics.proportions import clopper_pearson
from workers.statistics.rule import Decision, LogRatios, Rule
from workers.statistics.signed_rank import Estimate, estimate, robust_deviation, walsh_averages

BLOCK = 8
"""Adjacent pairs that stay together when a bank is resampled."""


class Floor(msgspec.Struct, frozen=True):
    """One case of a machine class: the loss that identical code may show, its bias with interval, and the spread of a pair.

    `floor` and `spread` are fractions; `spread` is the standard deviation of a log-ratio estimated from its median absolute
    deviation, which bursts do not inflate.
    """

    case: str
    floor: float
    bias: Estimate
    spread: float


class Rate(msgspec.Struct, frozen=True):
    """`hits` of `total` attempts, with the exact interval (Clopper-Pearson, 95 %) of their chance.

    Of resampled attempts the interval covers the resampling only. How far the bank may be from its machine class, the interval of its bias says:
    banks of 120 pairs whose bias is 0.3 % gate several times as often as those without any.
    """

    hits: int
    total: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.hits / self.total

    @classmethod
    def of(cls, hits: int, total: int) -> "Rate":
        return cls(hits, total, *clopper_pearson(hits, total))


def floor_from_aa(
    bank: LogRatios, pairs: int = 12, quantile: float = 0.95, minimum: float = 0.005, draws: int = 2000, seed: int = 0
) -> dict[str, Floor]:
    """By case, the loss that identical code shows in an estimate from `pairs` pairs with a chance of only 1 - `quantile`.

    Never below `minimum`, and as sharp as the bank is long: 120 pairs hold ten independent estimates from 12. Raises ValueError for a
    bank shorter than `pairs`.
    """
    if len(bank) < pairs:
        raise ValueError(
            f"A floor for {pairs} pairs is learned from at least as many A/A pairs; the bank has {len(bank)}."
        )
    rng = np.random.default_rng(seed)
    index = _block_indices(rng, len(bank), pairs, draws)
    floors = {}
    for case, column in zip(bank.cases, bank.values.T, strict=True):
        estimates = np.median(walsh_averages(column[index]), axis=-1)
        loss = -math.expm1(-float(np.quantile(np.abs(estimates), quantile)))
        floors[case] = Floor(case, max(minimum, loss), estimate(column), robust_deviation(column))
    return floors


def attempt_from(rule: Rule, pairs: LogRatios) -> Decision:
    """The final decision had the judge measured these pairs in this order: as many as the rule asks for, then the fresh ones.

    Raises ValueError if the pairs run out: `rule.looks[-1] + rule.confirm_pairs` always suffice.
    """
    for look in rule.looks:
        if len(pairs) < look:
            break
        decision = rule.decide(pairs[:look])
        if decision.kind == "faster":
            fresh = pairs[look : look + rule.confirm_pairs]
            if len(fresh) < rule.confirm_pairs:
                break
            return rule.confirm(pairs[:look], fresh)
        if decision.kind != "continue":
            return decision
    needed = rule.looks[-1] + rule.confirm_pairs
    raise ValueError(f"The rule ran out of pairs: {len(pairs)} were given and {needed} always suffice.")


def false_gate_rate(rule: Rule, bank: LogRatios, attempts: int = 2000, seed: int = 0, block: int = BLOCK) -> Rate:
    """How often the rule gates identical code, over all its looks, cases and the confirmation. For `rule`'s alpha, which is one try's."""
    return gate_power(rule, bank, 0.0, attempts, seed, block)


def gate_power(
    rule: Rule, bank: LogRatios, gain: float, attempts: int = 400, seed: int = 0, block: int = BLOCK
) -> Rate:
    """How often the rule gates, through confirmation, a head that is faster by the fraction `gain` in every case."""
    return Rate.of(sum(decision.gates for decision in _resampled(rule, bank, gain, attempts, seed, block)), attempts)


def loss_power(
    rule: Rule, bank: LogRatios, loss: float, attempts: int = 400, seed: int = 0, block: int = BLOCK
) -> Rate:
    """How often the rule says "slower" of a head that has lost the fraction `loss` of its speed in every case."""
    decisions = _resampled(rule, bank, -loss, attempts, seed, block)
    return Rate.of(sum(decision.kind == "slower" for decision in decisions), attempts)


def detectable_effect(
    rule: Rule, bank: LogRatios, power: float = 0.9, attempts: int = 300, seed: int = 0, largest: float = 0.5
) -> float | None:
    """The smallest gain, to a tenth of itself, that the rule gates with at least `power`; None if not even `largest`.

    Found by bisection over attempts resampled with the same random numbers, so that power rises with the gain. The bank's own bias is
    taken out first: it is reported apart, and must neither help nor hinder.
    """
    centred = LogRatios(bank.cases, bank.values - np.median(walsh_averages(bank.values.T), axis=-1))

    def enough(gain: float) -> bool:
        return gate_power(rule, centred, gain, attempts, seed).rate >= power

    if not enough(largest):
        return None
    low, high = 0.0, largest
    while high - low > 0.1 * high and high > 1e-4:
        middle = high / 2 if low == 0.0 else math.sqrt(low * high)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def resolvable_difference(
    rule: Rule, bank: LogRatios, share: float = 0.9, attempts: int = 300, seed: int = 0, largest: float = 0.1
) -> float:
    """The smallest margin, to a tenth of a per cent, with which the rule says "no difference" of identical code in `share` of attempts.

    At most `largest`, which is returned where even that does not suffice. The bank's own bias is left in: attempts meet it, too.
    """

    def enough(margin: float) -> bool:
        decisions = _resampled(msgspec.structs.replace(rule, equivalence=margin), bank, 0.0, attempts, seed, BLOCK)
        return sum(decision.kind == "no_difference" for decision in decisions) >= share * attempts

    low, high = 0.0, largest
    while high - low > 1e-3:
        middle = (low + high) / 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _resampled(rule: Rule, bank: LogRatios, gain: float, attempts: int, seed: int, block: int) -> Iterator[Decision]:
    planted = bank.times(1 + gain)
    length = rule.looks[-1] + rule.confirm_pairs
    for rows in _block_indices(np.random.default_rng(seed), len(bank), length, attempts, block):
        yield attempt_from(rule, LogRatios(bank.cases, planted.values[rows]))


def _block_indices(
    rng: np.random.Generator, bank: int, length: int, draws: int, block: int = BLOCK
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[draws, length]: positions in the bank, runs of `block` adjacent ones from random starts, around its end."""
    if bank < 1:
        raise ValueError("The bank is empty: measure A/A pairs first.")
    runs = -(-length // block)
    starts = rng.integers(0, bank, size=(draws, runs, 1))
    index: np.ndarray[tuple[int, int], np.dtype[np.int64]] = ((starts + np.arange(block)) % bank).reshape(
        draws, runs * block
    )[:, :length]
    return index
