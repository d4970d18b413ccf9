"""The rule tried on noise as machines make it: process offsets, drift, heavy tails, autocorrelation, bursts.

A rate that the rule promises is tested against the promise: a test fails where so many errors would be seen with a chance of one in a thousand
if the promise held. Seeds are fixed.
"""

import math

import numpy as np
import pytest

from workers.statistics import (
    LogRatios,
    Rule,
    alpha_for_try,
    attempt_from,
    clopper_pearson,
    estimate,
    resolvable_difference,
)
from workers.statistics.simulation import ACCELERATOR, BUSY_CORES, MACHINES, QUIET_CORES, SHARED_CORES

CASES = 6
machines = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
slow = pytest.mark.slow  # thousands of attempts: a rate is known only to the square root of their number


def at_most(hits, total, promise):
    return clopper_pearson(hits, total, level=0.998)[0] <= promise


def at_least(hits, total, promise):
    return clopper_pearson(hits, total, level=0.998)[1] >= promise


def decisions(machine, attempts, gain=0.0, rule=None, seed=11):
    rule = rule or Rule()
    length = rule.looks[-1] + rule.confirm_pairs
    rng = np.random.default_rng([seed, round(abs(gain) * 1e4)])
    return [attempt_from(rule, pairs) for pairs in machine.attempts(rng, attempts, length, CASES, gain)]


def author_gates(machine, authors, tries, seed):
    """How many of these authors get code through that changes nothing, by handing it in again and again."""
    rng = np.random.default_rng(seed)
    rules = [Rule(alpha=alpha_for_try(0.05, attempt)) for attempt in range(1, tries + 1)]
    length = rules[0].looks[-1] + rules[0].confirm_pairs
    through = 0
    for _ in range(authors):
        attempts = machine.attempts(rng, tries, length, CASES)
        through += any(attempt_from(rule, pairs).gates for rule, pairs in zip(rules, attempts, strict=True))
    return through


def check_false_gates(machine, authors, tries):
    through = author_gates(machine, authors, tries, seed=21)
    assert clopper_pearson(through, authors)[1] <= 0.05


def check_each_error(machine, attempts):
    results = decisions(machine, attempts)
    found = sum(decision.fresh > 0 for decision in results)
    slower = sum(decision.kind == "slower" for decision in results)
    assert at_most(found, attempts, Rule().alpha)
    assert at_most(slower, attempts, Rule().slower_alpha)
    assert sum(decision.gates for decision in results) <= 0.05 * attempts


def check_coverage(machine, attempts, gain):
    """Of what is published of every attempt, gated or not. Stops without a gain can miss on one side only, so they may cover more."""
    results = decisions(machine, attempts, gain, seed=31)
    covered = sum(result.estimate.low <= gain <= result.estimate.high for result in results)
    assert at_least(covered, attempts, 0.93)
    fresh = [result for result in results if result.fresh]
    exact = sum(result.estimate.low <= gain <= result.estimate.high for result in fresh)
    if len(fresh) > attempts / 2:
        assert at_least(exact, len(fresh), 0.93)
        assert at_most(exact, len(fresh), 0.97)
    cases = [case.estimate for result in results for case in result.cases]
    assert 0.93 <= np.mean([case.low <= gain <= case.high for case in cases]) <= 0.98


@machines
def test_resubmitting_until_lucky_fails(machine):
    check_false_gates(machine, authors=130, tries=4)


@slow
@machines
def test_resubmitting_twelve_times_fails_over_many_authors(machine):
    check_false_gates(machine, authors=600, tries=12)


@machines
def test_every_single_error_keeps_its_promise(machine):
    check_each_error(machine, attempts=350)


@slow
@machines
def test_every_single_error_keeps_its_promise_over_many_attempts(machine):
    check_each_error(machine, attempts=6000)


@pytest.mark.parametrize("gain", [0.0, 0.05])
@machines
def test_published_intervals_cover_the_truth(machine, gain):
    check_coverage(machine, 250, gain)


@slow
@pytest.mark.parametrize("gain", [-0.05, -0.01, 0.0, 0.01, 0.05, 0.2])
@machines
def test_published_intervals_cover_the_truth_over_many_attempts(machine, gain):
    check_coverage(machine, 4000, gain)


@machines
@pytest.mark.parametrize("pairs", [8, 12, 24])
def test_coverage_of_a_fixed_number_of_pairs_is_what_the_interval_says(machine, pairs):
    rng = np.random.default_rng(41)
    estimates = [estimate(attempt.gate) for attempt in machine.attempts(rng, 1500, pairs, CASES, 0.03)]
    covered = sum(whole.low <= 0.03 <= whole.high for whole in estimates)
    low, high = clopper_pearson(covered, 1500, level=0.998)
    assert low <= estimates[0].level <= high
    assert 0.93 <= covered / 1500 <= 0.97


def test_machine_with_a_bias_that_coins_do_not_cover_still_gates_rarely():
    results = decisions(ACCELERATOR, 500, gain=0.003)
    assert at_most(sum(decision.gates for decision in results), 500, 0.05)


@machines
def test_cases_within_their_floors_rarely_block_a_gain(machine):
    results = decisions(machine, 200, gain=0.15)
    assert at_most(sum(bool(decision.blocked_by) for decision in results), 200, Rule().case_alpha)


@pytest.mark.parametrize(
    ("machine", "loss"), [(ACCELERATOR, 0.06), (QUIET_CORES, 0.15)], ids=["accelerator", "2 quiet cores"]
)
def test_a_case_that_pays_for_the_others_blocks_them(machine, loss):
    rng = np.random.default_rng(51)
    blocked = 0
    for attempt in machine.attempts(rng, 100, 32, CASES, 0.20):
        attempt.values[:, 2] += math.log1p(-loss) - math.log1p(0.20)
        decision = attempt_from(Rule(), attempt)
        assert not (decision.gates and decision.blocked_by)
        blocked += decision.blocked_by == ("case-3",)
    assert blocked >= 85


@pytest.mark.parametrize(
    ("machine", "gain", "power"),
    [(ACCELERATOR, 0.01, 0.90), (ACCELERATOR, 0.02, 0.98), (QUIET_CORES, 0.05, 0.98), (SHARED_CORES, 0.06, 0.90)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_gains_are_found_and_confirmed(machine, gain, power):
    results = decisions(machine, 250, gain)
    assert at_least(sum(decision.gates for decision in results), 250, power)
    assert np.median([decision.pairs for decision in results if decision.gates]) == 12


@pytest.mark.parametrize(
    ("machine", "loss", "power"),
    [(ACCELERATOR, 0.02, 0.98), (QUIET_CORES, 0.05, 0.95)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_losses_are_heard_at_8_pairs(machine, loss, power):
    results = decisions(machine, 250, -loss)
    assert at_least(sum(decision.kind == "slower" for decision in results), 250, power)
    assert np.median([decision.pairs for decision in results]) == 8


@machines
def test_same_code_is_let_go_early(machine):
    results = decisions(machine, 250)
    assert np.median([decision.pairs for decision in results]) <= 12
    # On average less than one more stretch between looks (6 pairs) after the first look at 8.
    assert np.mean([decision.pairs + decision.fresh for decision in results]) < 8 + 6


def test_same_code_on_quiet_machines_is_told_so():
    for machine in (ACCELERATOR, QUIET_CORES):
        kinds = [decision.kind for decision in decisions(machine, 250)]
        assert at_least(kinds.count("no_difference"), 250, 0.9)


@machines
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_a_difference_as_large_as_the_margin_is_rarely_called_none(machine, side, margin):
    results = decisions(machine, 250, gain=side * margin, rule=Rule(equivalence=margin), seed=61)
    assert at_most(sum(decision.kind == "no_difference" for decision in results), 250, 0.05)


@pytest.mark.parametrize("machine", [QUIET_CORES, SHARED_CORES], ids=lambda machine: machine.name)
def test_the_resolvable_difference_is_told_of_identical_code_nine_times_in_ten(machine):
    (bank,) = machine.attempts(np.random.default_rng(71), 1, 200, CASES)
    margin = resolvable_difference(Rule(), bank)
    assert 0.005 < margin < 0.1
    others = decisions(machine, 250, rule=Rule(equivalence=margin), seed=72)
    assert at_least(sum(decision.kind == "no_difference" for decision in others), 250, 0.85)
    narrower = decisions(machine, 250, rule=Rule(equivalence=margin / 2), seed=72)
    assert sum(decision.kind == "no_difference" for decision in narrower) < 0.7 * 250


def test_it_goes_on_where_a_gain_is_ruled_out_and_no_difference_is_in_reach():
    pairs = np.array([0.003, -0.020, 0.001, -0.018, -0.001, -0.012, 0.004, -0.022])
    logs = LogRatios(("case",), pairs[:, None])
    assert estimate(pairs).high < 0.005
    assert Rule(equivalence=0.018).decide(logs).kind == "continue"
    assert Rule(equivalence=0.05).decide(logs).kind == "no_difference"
    assert Rule(equivalence=0.006).decide(logs).kind == "inconclusive"


def test_a_busy_neighbour_makes_it_inconclusive_and_never_wrong():
    results = decisions(BUSY_CORES, 300, gain=0.02)
    kinds = [decision.kind for decision in results]
    assert kinds.count("inconclusive") > kinds.count("faster") + kinds.count("slower") + kinds.count("no_difference")
    assert at_most(kinds.count("slower"), 300, Rule().slower_alpha)
