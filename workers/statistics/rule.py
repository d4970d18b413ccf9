"""The rule that the judge follows: measure pairs, look a few times, stop as soon as the answer is clear, confirm what would gate.

    looks at 8, 12, 18, 24 pairs      at 8 only "slower" and "no gain in sight" can end it; from 12 on also "faster"
    "faster" ▸ 8 fresh pairs          gates only if these show it again; estimate and intervals come from them alone

One number per pair decides: the mean over the cases of log(base / head), positive where head is faster. All fields that are shown are
fractions of speed: 0.123 means 12.3 % faster.

The errors, for a head that is no different from base:
- It is called faster and gates with a chance of at most `alpha` x `confirm_alpha` (0.05 x 0.10 = 0.5 %): the looks share `alpha` by the
  union bound, and the coins of the fresh pairs know nothing of the earlier ones. That leaves room for what coins do not
  cover, such as memory placed badly for one side for good.
- It is called slower with a chance of at most `slower_alpha`, as is one that has lost no more than `relevance`.
- A gain is blocked for a case that is not worse than its floor with a chance of at most `case_alpha`, over all cases and both tests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol

import msgspec
import numpy as np

from workers.statistics.ranking import benjamini_hochberg, holm
from workers.statistics.signed_rank import Estimate, Floats, estimate, percent, robust_deviation, sign_flip_p
from workers.statistics.spending import look_levels

Kind = Literal["continue", "faster", "slower", "no_difference", "inconclusive"]

LOOKS = (8, 12, 18, 24)


class Pair(Protocol):
    """What the rule reads of a pair: of each side, the median seconds per call by case. `PairRecord` of the protocol has this form."""

    @property
    def base(self) -> Mapping[str, float]: ...

    @property
    def head(self) -> Mapping[str, float]: ...


class PairSample(msgspec.Struct, frozen=True):
    """One pair of fresh processes: which side the judge's coin put first (A is base, B is head), and the median seconds by case."""

    order: Literal["AB", "BA"]
    base: dict[str, float]
    head: dict[str, float]


@dataclass(frozen=True)
class LogRatios:
    """log(base / head) of every pair and case: `values` [pairs, cases], in the order of `cases`."""

    cases: tuple[str, ...]
    values: Floats

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "LogRatios":
        """The log-ratios of `pairs`. Raises ValueError if the cases differ between pairs or sides, or a time is not positive and finite."""
        if not pairs:
            return cls((), np.empty((0, 0)))
        cases = tuple(pairs[0].base)
        if not cases:
            raise ValueError("Pair 1 has no cases: a pair holds the median seconds of at least one case.")
        wanted = set(cases)
        for number, pair in enumerate(pairs, start=1):
            if set(pair.base) != wanted or set(pair.head) != wanted:
                raise ValueError(
                    f"Pair {number} has the cases {sorted(set(pair.base) | set(pair.head))} and pair 1 has {sorted(wanted)}: "
                    "every case is measured on both sides of every pair."
                )
        seconds = np.array([[[side[case] for case in cases] for side in (pair.base, pair.head)] for pair in pairs])
        if not np.all(np.isfinite(seconds) & (seconds > 0)):
            number, side, case = np.argwhere(~(np.isfinite(seconds) & (seconds > 0)))[0]
            raise ValueError(
                f"{('Base', 'Head')[side]} took {seconds[number, side, case]} s in case {cases[case]} of pair {number + 1}: "
                "a median is a positive, finite number of seconds."
            )
        return cls(cases, np.log(seconds[:, 0]) - np.log(seconds[:, 1]))

    @property
    def gate(self) -> Floats:
        """[pairs]: the one number per pair that decides."""
        means: Floats = self.values.mean(axis=1) if self.cases else np.empty(0)
        return means

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, pairs: slice) -> "LogRatios":
        return LogRatios(self.cases, self.values[pairs])

    def __add__(self, other: "LogRatios") -> "LogRatios":
        if self.cases != other.cases:
            raise ValueError(f"Pairs over the cases {self.cases} and {other.cases} cannot be put together.")
        return LogRatios(self.cases, np.concatenate([self.values, other.values]))

    def times(self, speedup: float) -> "LogRatios":
        """The same pairs had head been `speedup` times as fast in every case."""
        return LogRatios(self.cases, self.values + math.log(speedup))


class CaseResult(msgspec.Struct, frozen=True):
    """One case: its speed-up, two-sided p and, over all cases, Benjamini-Hochberg q, for display only.

    `p_loss` is the p-value, adjusted by Holm over the cases, of "it lost more than its floor", on all pairs up to the decision.
    """

    case: str
    estimate: Estimate
    p: float
    q: float
    floor: float
    p_loss: float


class Decision(msgspec.Struct, frozen=True):
    """What the pairs say. `why` is a sentence for a person; only a decision with `gates` may let anything through.

    `estimate` and `cases` may be published, except of a gain that is still to be confirmed: after `confirm` they come from the fresh pairs alone.
    `pairs` and `fresh` count the pairs before and in confirmation. `p` is one-sided, for "faster", at the last look or, after
    confirmation, of the fresh pairs. "slower" with `blocked_by` means: faster over all, but these cases lost more
    than their floor. `next_look` is the number of pairs at which the rule decides again.
    """

    kind: Kind
    why: str
    pairs: int
    fresh: int = 0
    p: float | None = None
    estimate: Estimate | None = None
    cases: tuple[CaseResult, ...] = ()
    blocked_by: tuple[str, ...] = ()
    next_look: int | None = None
    confirmed: bool = False

    @property
    def gates(self) -> bool:
        """Whether this is a confirmed gain."""
        return self.kind == "faster" and self.confirmed


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rule of one attempt, fixed before its first pair. Pure: the same pairs always give the same decision.

    `alpha`: of this try (`alpha_for_try`). `relevance`: gains below it are not worth a merge; losses up to it are no reason to fail, and a loss is tested against it.
    `equivalence`: the largest difference that "no difference" may leave possible; what a machine class can resolve. `bias`: the gain
    that identical code may show on this machine class; a gain is tested against it. `floors`: per case, the loss that identical
    code may show; `floor` for cases that are not listed. `futility`: the chance of a confirmed gain below which it stops, unless the chance of a clear
    loss is at least `curiosity` (who made something slower should hear it) or more pairs would show "no difference". All such
    stops may be overruled without harm: no error rate counts on them.

    Confirmation has the level 0.10, not a smaller one, on purpose: of 8 pairs that is the largest sum of ranks against the
    gain that still forgives one burst of any size, which on a shared machine decides more than all else (benchmarks/statistics_power.py).
    """

    alpha: float = 0.05
    looks: tuple[int, ...] = LOOKS
    gate_from: int = 12
    confirm_pairs: int = 8
    confirm_alpha: float = 0.10
    slower_alpha: float = 0.05
    case_alpha: float = 0.05
    relevance: float = 0.005
    equivalence: float = 0.03
    bias: float = 0.0
    floor: float = 0.03
    floors: dict[str, float] = {}
    futility: float = 0.10
    curiosity: float = 0.3
    level: float = 0.95

    def __post_init__(self) -> None:
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise ValueError(f"Looks are ascending numbers of pairs, as in {LOOKS}; got {self.looks}.")
        for name in ("alpha", "confirm_alpha", "slower_alpha", "case_alpha", "level"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)}.")
        shares = [
            self.relevance,
            self.equivalence,
            self.bias,
            self.floor,
            self.futility,
            self.curiosity,
            *self.floors.values(),
        ]
        if not all(0 <= share < 1 for share in shares):
            raise ValueError(
                "relevance, equivalence, bias, futility, curiosity and floors are fractions: at least 0 and below 1."
            )

    @property
    def gate_levels(self) -> dict[int, float]:
        """By look: the level at which it may find a gain."""
        return look_levels(self.alpha, [look for look in self.looks if look >= self.gate_from])

    @property
    def slower_levels(self) -> dict[int, float]:
        """By look: the level at which it may find a loss."""
        return look_levels(self.slower_alpha, self.looks)

    def decide(self, pairs: Sequence[Pair] | LogRatios) -> Decision:
        """The decision after these pairs, called after every pair: "continue" between looks, and only the last look always ends it.

        "faster" is not final: measure `confirm_pairs` fresh pairs and call `confirm`. Raises ValueError for more pairs than the last look.
        """
        logs = pairs if isinstance(pairs, LogRatios) else LogRatios.of(pairs)
        count = len(logs)
        if count > self.looks[-1]:
            raise ValueError(
                f"The rule ends at {self.looks[-1]} pairs and was given {count}: fresh pairs go to `confirm`."
            )
        if count not in self.looks:
            upcoming = next(look for look in self.looks if look > count)
            return Decision("continue", f"{count} of {upcoming} pairs until the next look", count, next_look=upcoming)
        gate = logs.gate
        whole = estimate(gate, self.level)
        p = sign_flip_p(gate, math.log1p(self.bias))
        if p <= self.gate_levels.get(count, 0.0) * (1 + 1e-12) and whole.gain >= self.relevance:
            return self._found(logs, whole, p)
        if self._slower(gate, whole):
            return self._report("slower", f"slower: {whole}, {count} pairs", logs, whole, p)
        last = count == self.looks[-1]
        if last:
            return self._without_gain(logs, whole, p, f"no gain was shown in {count} pairs")
        if not self._answer_in_reach(gate, whole):
            if whole.high < self.relevance:
                lead = f"a gain of {percent(self.relevance)} is ruled out by {count} pairs"
                return self._without_gain(logs, whole, p, lead)
            if self._chance_of_gain(gate) < self.futility and self._chance_of_loss(gate) < self.curiosity:
                return self._without_gain(logs, whole, p, f"no gain in sight after {count} pairs")
        upcoming = next(look for look in self.looks if look > count)
        why = f"not clear after {count} pairs: {whole}, {_p(p)}; on to {upcoming}"
        return Decision("continue", why, count, p=p, estimate=whole, next_look=upcoming)

    def confirm(self, stop_pairs: Sequence[Pair] | LogRatios, fresh_pairs: Sequence[Pair] | LogRatios) -> Decision:
        """The final decision on a gain that `decide(stop_pairs)` found, from pairs measured after it.

        With fewer fresh pairs than `confirm_pairs` the budget ended and nothing is decided. Estimate, intervals and p are those of the
        fresh pairs, which no stop has selected; a loss of a case beyond its floor is looked for in all pairs. Raises ValueError where
        no gain was found, or for too many fresh pairs.
        """
        stop = stop_pairs if isinstance(stop_pairs, LogRatios) else LogRatios.of(stop_pairs)
        fresh = fresh_pairs if isinstance(fresh_pairs, LogRatios) else LogRatios.of(fresh_pairs)
        found = self.decide(stop)
        if found.kind != "faster":
            raise ValueError(f"Only a gain is confirmed, but these {len(stop)} pairs say: {found.kind}.")
        if len(fresh) > self.confirm_pairs:
            raise ValueError(f"A gain is confirmed by {self.confirm_pairs} fresh pairs and not by {len(fresh)}.")
        earlier = f"a gain of {found.estimate} was found in {found.pairs} pairs"
        if len(fresh) < self.confirm_pairs:
            why = f"inconclusive: {earlier}, but the budget ended after {len(fresh)} of {self.confirm_pairs} pairs to confirm it"
            if not len(fresh):
                return Decision("inconclusive", why, len(stop))
            return self._report("inconclusive", why, fresh, estimate(fresh.gate, self.level), None, before=stop)
        whole = estimate(fresh.gate, self.level)
        p = sign_flip_p(fresh.gate, math.log1p(self.bias))
        if p > self.confirm_alpha * (1 + 1e-12) or whole.gain < self.relevance:
            lead = f"{earlier}, but {len(fresh)} fresh pairs do not confirm it"
            return self._without_gain(fresh, whole, p, lead, before=stop)
        blocked = self._lost(stop + fresh)
        if blocked:
            return self._blocked(fresh, whole, p, blocked, before=stop)
        assert found.p is not None
        why = f"faster: {whole}, found in {len(stop)} pairs ({_p(found.p)}), confirmed by {len(fresh)} fresh ones ({_p(p)})"
        return self._report("faster", why, fresh, whole, p, before=stop, confirmed=True)

    def give_up(self, pairs: Sequence[Pair] | LogRatios) -> Decision:
        """The decision when the budget ended between looks: "no_difference" if the pairs show that much, else "inconclusive"."""
        logs = pairs if isinstance(pairs, LogRatios) else LogRatios.of(pairs)
        if not len(logs):
            return Decision("inconclusive", "inconclusive: the budget ended before the first pair", 0)
        p = sign_flip_p(logs.gate, math.log1p(self.bias))
        return self._without_gain(logs, estimate(logs.gate, self.level), p, f"the budget ended after {len(logs)} pairs")

    def _found(self, logs: LogRatios, whole: Estimate, p: float) -> Decision:
        blocked = self._lost(logs)
        if blocked:
            return self._blocked(logs, whole, p, blocked)
        return self._report("faster", f"faster: {whole}, {len(logs)} pairs, {_p(p)}; to be confirmed", logs, whole, p)

    def _slower(self, gate: Floats, whole: Estimate) -> bool:
        clear = sign_flip_p(-gate, self._no_loss) <= self.slower_levels[len(gate)] * (1 + 1e-12)
        return clear and whole.high < 0

    @property
    def _no_loss(self) -> float:
        """The loss, as a logarithm, that a loss is tested against."""
        return -math.log1p(-self.relevance)

    def _lost(self, logs: LogRatios) -> dict[str, float]:
        """Cases that lost more than their floor. It is looked for twice, at the find and at its confirmation, so each has half the level."""
        return {case: p for case, p in self._p_losses(logs).items() if p <= self.case_alpha / 2}

    def _p_losses(self, logs: LogRatios) -> dict[str, float]:
        floors = [self.floors.get(case, self.floor) for case in logs.cases]
        ps = [sign_flip_p(-column, -math.log1p(-floor)) for column, floor in zip(logs.values.T, floors, strict=True)]
        return dict(zip(logs.cases, holm(ps), strict=True))

    def _answer_in_reach(self, gate: Floats, whole: Estimate) -> bool:
        """Whether "no difference" is not shown yet but will be by the last look, if the estimate stays and the interval shrinks as 1 / sqrt(n).

        The interval is foreseen from the pairs' median absolute deviation, too: that of 8 pairs goes by the signed-rank test nearly from the lowest to
        the highest, so one pair in a burst makes it wide, while that of 24 does not care.
        """
        margin = max(self.relevance, self.equivalence)
        shrunk = (whole.high - whole.low) / 2 * math.sqrt(whole.pairs / self.looks[-1])
        foreseen = NormalDist().inv_cdf((1 + self.level) / 2) * robust_deviation(gate) / math.sqrt(self.looks[-1])
        return whole.largest > margin and abs(whole.gain) + min(shrunk, foreseen) <= margin

    def _chance_of_gain(self, gate: Floats) -> float:
        """The chance that the last look finds a gain and fresh pairs confirm it, if the trend so far is the truth."""
        normal = NormalDist()
        z = _normal_score(gate - math.log1p(self.bias))
        found = self._chance_at_last_look(z, len(gate), self.gate_levels.get(self.looks[-1], 0.0))
        again = normal.cdf(z * math.sqrt(self.confirm_pairs / len(gate)) - normal.inv_cdf(1 - self.confirm_alpha))
        return found * again

    def _chance_of_loss(self, gate: Floats) -> float:
        """The chance that the last look finds a loss, if the trend so far is the truth."""
        score = _normal_score(-gate - self._no_loss)
        return self._chance_at_last_look(score, len(gate), self.slower_levels[self.looks[-1]])

    def _chance_at_last_look(self, z: float, count: int, level: float) -> float:
        # Conditional power under the current trend: Lan, Simon & Halperin, Sequential Analysis 1, 1982; in B-values: Proschan, Lan &
        # Wittes, Statistical Monitoring of Clinical Trials, 2006, ch. 3.
        if level <= 0:
            return 0.0
        normal = NormalDist()
        fraction = count / self.looks[-1]
        return normal.cdf((z / math.sqrt(fraction) - normal.inv_cdf(1 - level)) / math.sqrt(1 - fraction))

    def _without_gain(
        self, logs: LogRatios, whole: Estimate, p: float, lead: str, before: LogRatios | None = None
    ) -> Decision:
        # Equivalence by two one-sided tests at (1 - level) / 2 each: the interval lies within the margins (Schuirmann, Journal of
        # Pharmacokinetics and Biopharmaceutics 15, 1987).
        margin = max(self.relevance, self.equivalence)
        if whole.level >= self.level and whole.largest <= margin:
            why = f"no difference larger than {percent(whole.largest)}: {lead}, {whole}"
            return self._report("no_difference", why, logs, whole, p, before=before)
        why = f"inconclusive: {lead}, {whole}, {_p(p)}; differences up to {percent(whole.largest)} are possible"
        return self._report("inconclusive", why, logs, whole, p, before=before)

    def _blocked(
        self, logs: LogRatios, whole: Estimate, p: float, blocked: Mapping[str, float], before: LogRatios | None = None
    ) -> Decision:
        decision = self._report("slower", "", logs, whole, p, before=before, blocked_by=tuple(blocked))
        worst = "; ".join(
            f"{result.case}: {result.estimate}, floor {percent(-result.floor)}, {_p(result.p_loss)}"
            for result in decision.cases
            if result.case in blocked
        )
        cases = "a case" if len(blocked) == 1 else f"{len(blocked)} cases"
        return msgspec.structs.replace(decision, why=f"slower in {cases}, though {whole} over all ({worst})")

    def _report(
        self,
        kind: Kind,
        why: str,
        logs: LogRatios,
        whole: Estimate,
        p: float | None,
        before: LogRatios | None = None,
        blocked_by: tuple[str, ...] = (),
        confirmed: bool = False,
    ) -> Decision:
        """`logs` are the pairs to publish, `before` those of the stop where they are not among them."""
        losses = self._p_losses(logs if before is None else before + logs)
        ps = [min(1.0, 2 * min(sign_flip_p(column), sign_flip_p(-column))) for column in logs.values.T]
        cases = tuple(
            CaseResult(case, estimate(column, self.level), p_case, q, self.floors.get(case, self.floor), losses[case])
            for case, column, p_case, q in zip(logs.cases, logs.values.T, ps, benjamini_hochberg(ps), strict=True)
        )
        count, fresh = (len(logs), 0) if before is None else (len(before), len(logs))
        return Decision(kind, why, count, fresh, p, whole, cases, blocked_by, confirmed=confirmed)


def looks_within(pairs: int, looks: Sequence[int] = LOOKS) -> tuple[int, ...]:
    """The looks that a budget of `pairs` allows, the last one at the budget's end: 20 gives (8, 12, 20), 48 gives (8, 12, 18, 24, 48)."""
    fitting = tuple(look for look in looks if look <= pairs)
    if not fitting or fitting[-1] == pairs:
        return fitting or (pairs,)
    return (*fitting, pairs) if pairs > looks[-1] else (*fitting[:-1], pairs)


def _normal_score(gate: Floats) -> float:
    """Z of the exact mid-p-value of "the log-ratios lie above 0"."""
    mid = (sign_flip_p(gate) + 1 - sign_flip_p(-gate)) / 2
    return NormalDist().inv_cdf(1 - min(max(mid, 1e-12), 1 - 1e-12))


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.01 else f"p = {p:.2f}"
