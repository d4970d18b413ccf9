"""What the measurements say: from pairs of timings to a decision, an interval and a rank.

Pure functions and frozen records: no clock, no files, no torch; numpy is all that is imported besides the standard library and
msgspec. The platform imports this package too.

The one idea that everything rests on: before each pair the judge flips a fair coin for which side runs first. If head is no
different from base, the two timings of a pair would have been the same whichever way the coin fell, so the coin alone
decides the sign of the pair's log-ratio. Every test here asks how often fair coins would have given signs like these. Drift,
bursts, heavy tails and autocorrelation change the sizes of the log-ratios, but never the coins, so they cannot make a
false discovery more frequent (Fisher, The Design of Experiments, 1935; Rosenbaum, Observational Studies, 2002, ch. 2).

    signed_rank.py   the test and the interval that it inverts to
    spending.py      how much error each look and each resubmission may use
    rule.py          the rule that the judge follows: decide after each pair, confirm with fresh pairs
    ranking.py       many comparisons at once: Holm, Benjamini-Hochberg, tiers
    proportions.py   intervals of a rate
    contention.py    whether something else disturbed a pair
    roofline.py      what no machine can do
    amdahl.py        what a whole gains by one of its parts
    calibration.py   floors, false-gate rate and detectable effect from pairs of the same code
    simulation.py    noise as machines make it, to try the rule on
"""

from workers.statistics.amdahl import of_whole
from workers.statistics.calibration import (
    Floor,
    Rate,
    attempt_from,
    detectable_effect,
    false_gate_rate,
    floor_from_aa,
    gate_power,
    loss_power,
    resolvable_difference,
)
from workers.statistics.contention import TAKING_TURNS, Observation, Thresholds, contended, may_repeat
from workers.statistics.proportions import clopper_pearson, wilson
from workers.statistics.ranking import Tier, benjamini_hochberg, better_than, holm, tiers
from workers.statistics.roofline import impossible
from workers.statistics.rule import (
    CaseResult,
    Decision,
    Kind,
    LogRatios,
    Pair,
    PairSample,
    Rule,
    looks_within,
)
from workers.statistics.signed_rank import Estimate, estimate, percent, robust_deviation, sign_flip_p
from workers.statistics.spending import alpha_for_try, look_levels, pocock_like

__all__ = [
    "TAKING_TURNS",
    "CaseResult",
    "Decision",
    "Estimate",
    "Floor",
    "Kind",
    "LogRatios",
    "Observation",
    "Pair",
    "PairSample",
    "Rate",
    "Rule",
    "Thresholds",
    "Tier",
    "alpha_for_try",
    "attempt_from",
    "benjamini_hochberg",
    "better_than",
    "clopper_pearson",
    "contended",
    "detectable_effect",
    "estimate",
    "false_gate_rate",
    "floor_from_aa",
    "gate_power",
    "holm",
    "impossible",
    "look_levels",
    "looks_within",
    "loss_power",
    "may_repeat",
    "of_whole",
    "percent",
    "pocock_like",
    "resolvable_difference",
    "robust_deviation",
    "sign_flip_p",
    "tiers",
    "wilson",
]
