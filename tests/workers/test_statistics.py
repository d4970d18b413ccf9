"""The statistics: exact where theory gives a figure, and as properties where it gives a law."""

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.protocol import PairRecord
from workers.statistics import (
    Decision,
    Estimate,
    LogRatios,
    Observation,
    PairSample,
    Rule,
    alpha_for_try,
    attempt_from,
    benjamini_hochberg,
    better_than,
    clopper_pearson,
    contended,
    detectable_effect,
    estimate,
    false_gate_rate,
    floor_from_aa,
    gate_power,
    holm,
    impossible,
    look_levels,
    looks_within,
    loss_power,
    may_repeat,
    percent,
    pocock_like,
    sign_flip_p,
    tiers,
    wilson,
)
from workers.statistics.simulation import ACCELERATOR, QUIET_CORES

log_ratios = st.floats(-0.5, 0.5, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9)
untied = st.lists(log_ratios.filter(bool), min_size=1, max_size=14, unique_by=abs)
probabilities = st.lists(st.floats(0, 1), max_size=12)


def by_enumeration(values):
    """The definition: rank the sizes, flip every sign in every way, count how often the sum of positive ranks is as large."""
    sizes = np.abs(values)
    ranks = np.array([((sizes < size).sum() + (sizes <= size).sum() + 1) / 2 if size else 0.0 for size in sizes])
    observed = ranks[np.array(values) > 0].sum()
    flips = np.array(list(itertools.product([0, 1], repeat=len(values))))
    return np.mean(flips @ ranks >= observed - 1e-9)


def ratios(*rows, cases=None):
    values = np.log1p(np.array(rows, dtype=float))
    return LogRatios(cases or tuple("abcdefgh"[: values.shape[1]]), values)


def steady(gain, pairs, cases=3, spread=0.01, seed=1):
    rng = np.random.default_rng(seed)
    noise = spread * rng.normal(size=(pairs, cases))
    noise -= noise.mean(axis=0)
    return LogRatios(tuple("abcdefgh"[:cases]), math.log1p(gain) + noise)


class TestSignFlip:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(log_ratios, min_size=1, max_size=10))
    def test_equals_the_enumeration_of_all_flips_with_ties_and_zeros(self, values):
        assert sign_flip_p(values) == pytest.approx(by_enumeration(values))

    @pytest.mark.parametrize("pairs", [1, 8, 12, 24, 40])
    def test_smallest_p_is_two_to_the_minus_pairs(self, pairs):
        assert sign_flip_p(np.arange(1, pairs + 1) / 100) == pytest.approx(2.0**-pairs, rel=1e-9)

    def test_matches_the_published_table(self):
        # Hollander & Wolfe (1999), table A.4: P(W >= 31) = 0.039 of 8 pairs, P(W >= 60) = 0.055 of 12.
        assert sign_flip_p([-1, -4, 2, 3, 5, 6, 7, 8]) == pytest.approx(10 / 256)
        assert round(sign_flip_p([-1, -2, -3, -12, 4, 5, 6, 7, 8, 9, 10, 11]), 3) == 0.055

    def test_gives_nothing_away_without_pairs_or_differences(self):
        assert sign_flip_p([]) == 1.0
        assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0

    def test_is_exact_for_coins_whatever_the_sizes_are(self):
        sizes = np.abs(np.random.default_rng(3).standard_cauchy(10)).cumsum()
        signs = itertools.product([-1, 1], repeat=10)
        ps = np.array([sign_flip_p(sizes * np.array(flip)) for flip in signs])
        for level in (0.01, 0.025, 0.05, 0.1):
            assert np.mean(ps <= level) <= level

    @given(untied, st.floats(-0.2, 0.2))
    def test_a_shift_tests_the_shifted_values(self, values, shift):
        assert sign_flip_p(values, shift) == sign_flip_p(np.array(values) - shift)


class TestEstimate:
    @given(untied)
    def test_interval_excludes_no_difference_exactly_when_the_test_rejects(self, values):
        whole = estimate(values)
        level = (1 - whole.level) / 2 * (1 + 1e-9)
        assert (whole.low > 0) == (sign_flip_p(values) <= level)
        assert (whole.high < 0) == (sign_flip_p(np.negative(values)) <= level)

    @given(untied)
    def test_estimate_lies_in_its_interval_and_turns_with_the_sign(self, values):
        one, other = estimate(values), estimate(np.negative(values))
        assert one.low <= one.gain <= one.high
        assert math.log1p(one.gain) == pytest.approx(-math.log1p(other.gain), abs=1e-9)
        assert math.log1p(one.low) == pytest.approx(-math.log1p(other.high), abs=1e-9)

    @pytest.mark.parametrize(("pairs", "level"), [(8, 0.9609), (12, 0.9575), (18, 0.9517), (24, 0.9509)])
    def test_level_is_the_exact_coverage(self, pairs, level):
        assert estimate(np.arange(pairs) / 100).level == pytest.approx(level, abs=5e-5)

    def test_is_the_median_of_walsh_averages(self):
        assert math.log1p(estimate([0.1, 0.2, 0.9]).gain) == pytest.approx(0.35)

    def test_one_burst_hardly_moves_it(self):
        quiet = [0.048, 0.049, 0.05, 0.05, 0.051, 0.052, 0.05]
        assert abs(estimate([*quiet, -0.3]).gain - estimate([*quiet, 0.05]).gain) < 0.001

    def test_few_pairs_say_how_little_they_cover(self):
        few = estimate([0.1, 0.2, 0.3])
        assert few.level == pytest.approx(0.75)
        assert (math.log1p(few.low), math.log1p(few.high)) == pytest.approx((0.1, 0.3))

    def test_refuses_to_estimate_from_nothing(self):
        with pytest.raises(ValueError, match="measure at least one"):
            estimate([])

    def test_prints_as_a_person_would_write_it(self):
        assert str(Estimate(0.1234, 0.101, 0.1463, 0.96, 8)) == "12.3 % [10.1, 14.6]"
        assert str(Estimate(0.0012, 0.0008, 0.0016, 0.96, 8)) == "0.12 % [0.08, 0.16]"
        assert percent(-0.00001) == "0.0 %"


class TestSpending:
    @pytest.mark.parametrize("alpha", [0.001, 0.01, 0.05, 0.2])
    @pytest.mark.parametrize("looks", [(12, 18, 24), (8, 12, 18, 24), (8,), (12, 24, 48)])
    def test_looks_share_alpha(self, alpha, looks):
        levels = look_levels(alpha, looks)
        assert sum(levels.values()) <= alpha
        spent = list(itertools.accumulate(levels.values()))
        assert all(
            total <= pocock_like(alpha, look / looks[-1]) + 1e-12 for total, look in zip(spent, looks, strict=True)
        )

    def test_what_a_look_cannot_use_goes_to_the_next(self):
        levels = look_levels(0.0003, (8, 12, 24))
        assert levels[8] == 0.0
        assert levels[24] > 0.0001

    def test_a_clear_gain_can_stop_at_the_first_look(self):
        assert Rule().gate_levels[12] >= 0.02
        assert Rule(alpha=alpha_for_try(0.05, 5)).gate_levels[12] >= 2.0**-12

    def test_tries_together_spend_no_more_than_alpha(self):
        total = sum(alpha_for_try(0.05, attempt) for attempt in range(1, 10_000))
        assert 0.0499 < total < 0.05

    def test_there_is_no_try_zero(self):
        with pytest.raises(ValueError, match="counted from 1"):
            alpha_for_try(0.05, 0)


class TestRule:
    def test_clear_gain_stops_at_12_and_is_confirmed_by_8(self):
        rule = Rule()
        found = rule.decide(steady(0.10, 12))
        assert (found.kind, found.gates) == ("faster", False)
        final = rule.confirm(steady(0.10, 12), steady(0.08, 8, seed=2))
        assert final.gates
        assert (final.pairs, final.fresh) == (12, 8)
        assert final.estimate.gain == pytest.approx(0.08, abs=0.004)
        assert final.why.startswith(
            f"faster: {final.estimate}, found in 12 pairs (p = 0.0002), confirmed by 8 fresh ones"
        )

    def test_even_the_clearest_gain_is_not_found_at_8(self):
        assert Rule().decide(steady(1.0, 8)).kind == "continue"

    def test_clear_loss_ends_at_8(self):
        decision = Rule().decide(steady(-0.05, 8))
        assert decision.kind == "slower"
        assert decision.estimate.high < 0
        assert "slower: -5.0 %" in decision.why

    def test_loss_too_small_to_matter_is_no_difference(self):
        decision = Rule().decide(steady(-0.002, 8, spread=0.001))
        assert decision.kind == "no_difference"
        assert decision.estimate.largest < 0.005

    def test_a_loss_is_tested_against_one_that_does_not_matter(self):
        # Memory placed badly for one side for good shows about as much: clearly below nothing, not clearly worth failing for.
        assert Rule().decide(steady(-0.006, 24, spread=0.004)).kind == "no_difference"
        assert Rule().decide(steady(-0.012, 24, spread=0.004)).kind == "slower"
        assert Rule(relevance=0.0).decide(steady(-0.006, 24, spread=0.004)).kind == "slower"

    def test_gain_too_small_to_matter_ends_as_no_difference(self):
        decision = Rule().decide(steady(0.002, 8, spread=0.001))
        assert decision.kind == "no_difference"
        assert "a gain of 0.5 % is ruled out" in decision.why

    def test_same_code_ends_at_8(self):
        decision = Rule().decide(steady(0.0, 8, spread=0.02))
        assert decision.kind == "no_difference"
        assert decision.why.startswith(
            f"no difference larger than {percent(decision.estimate.largest)}: no gain in sight"
        )

    def test_noise_that_hides_everything_is_inconclusive(self):
        decision = Rule().decide(steady(0.0, 8, spread=0.3))
        assert decision.kind == "inconclusive"
        assert "differences up to" in decision.why

    def test_more_pairs_are_measured_where_they_would_show_no_difference(self):
        wide = steady(0.0, 8, spread=0.1)
        assert Rule().decide(wide).kind == "continue"
        assert Rule(equivalence=0.005).decide(wide).kind == "inconclusive"
        assert Rule(equivalence=0.10).decide(wide).kind == "no_difference"

    def test_bursts_in_two_of_eight_pairs_do_not_end_it_without_an_answer(self):
        gates = np.array([0.005, -0.01, 0.012, 0.004, -0.006, 0.001, 0.16, -0.15])
        decision = Rule().decide(LogRatios(("a",), gates[:, None]))
        assert decision.estimate.largest > Rule().equivalence
        assert (decision.kind, decision.next_look) == ("continue", 12)

    def test_does_not_peek_between_looks(self):
        for count in (0, 1, 7, 9, 11, 13, 23):
            decision = Rule().decide(steady(0.5, count) if count else [])
            assert decision.kind == "continue"
            assert decision.p is None
            assert decision.next_look == next(look for look in (8, 12, 18, 24) if look > count)

    def test_refuses_pairs_beyond_the_last_look(self):
        with pytest.raises(ValueError, match="ends at 24 pairs and was given 25"):
            Rule().decide(steady(0.1, 25))

    def test_chance_find_is_not_confirmed(self):
        final = Rule().confirm(steady(0.10, 12), steady(0.0, 8, seed=2))
        assert final.kind == "no_difference"
        assert not final.gates
        assert "8 fresh pairs do not confirm it" in final.why
        assert abs(final.estimate.gain) < 0.01

    def test_confirmation_forgives_one_burst(self):
        fresh = steady(0.05, 8, seed=2)
        fresh.values[3] -= 0.4
        assert Rule().confirm(steady(0.05, 12), fresh).gates
        fresh.values[4] -= 0.4
        assert not Rule().confirm(steady(0.05, 12), fresh).gates

    def test_budget_that_ends_in_confirmation_decides_nothing(self):
        for fresh in (0, 5):
            final = Rule().confirm(steady(0.10, 12), steady(0.10, fresh) if fresh else [])
            assert final.kind == "inconclusive"
            assert f"after {fresh} of 8" in final.why

    def test_only_a_found_gain_is_confirmed(self):
        with pytest.raises(ValueError, match="Only a gain is confirmed"):
            Rule().confirm(steady(0.0, 12), steady(0.1, 8))
        with pytest.raises(ValueError, match="by 8 fresh pairs and not by 9"):
            Rule().confirm(steady(0.1, 12), steady(0.1, 9))

    def test_budget_that_ends_between_looks_never_finds_a_gain(self):
        for pairs in (0, 1, 10, 15):
            decision = Rule().give_up(steady(0.2, pairs) if pairs else [])
            assert decision.kind == "inconclusive"
            assert "budget ended" in decision.why
        assert Rule().give_up(steady(0.0, 15)).kind == "no_difference"
        assert Rule().give_up(steady(0.0, 4, spread=1e-5)).kind == "inconclusive"

    def test_case_beyond_its_floor_blocks_a_gain(self):
        pairs = steady(0.20, 12)
        pairs.values[:, 1] -= 0.30
        decision = Rule().decide(pairs)
        assert decision.kind == "slower"
        assert decision.blocked_by == ("b",)
        assert "slower in a case, though" in decision.why
        assert "b: -11.0 %" in decision.why

    def test_case_within_its_floor_does_not_block(self):
        pairs = steady(0.20, 12)
        pairs.values[:, 1] -= 0.30
        assert Rule(floors={"b": 0.15}).decide(pairs).kind == "faster"

    def test_case_is_also_watched_in_confirmation(self):
        fresh = steady(0.20, 8, seed=2)
        fresh.values[:, 1] -= 0.4
        stop = steady(0.20, 12)
        stop.values[:, 1] -= 0.215
        decision = Rule().confirm(stop, fresh)
        assert decision.blocked_by == ("b",)
        assert not decision.gates

    def test_gain_within_the_machines_bias_is_not_found(self):
        pairs = steady(0.008, 12, spread=0.001)
        assert Rule().decide(pairs).kind == "faster"
        assert Rule(bias=0.009).decide(pairs).kind != "faster"

    def test_decisions_travel_as_json(self):
        for decision in (
            Rule().confirm(steady(0.1, 12), steady(0.1, 8)),
            Rule().decide([]),
            Rule().decide(steady(0, 8)),
        ):
            text = msgspec.json.encode(decision)
            assert msgspec.json.decode(text, type=Decision) == decision
        assert msgspec.json.decode(msgspec.json.encode(Rule(floors={"a": 0.02})), type=Rule) == Rule(floors={"a": 0.02})

    def test_reads_seconds_from_samples_and_from_protocol_records(self):
        times = [({"p": 1.0, "d": 2.0}, {"d": 1.0, "p": 1.0})] * 3
        samples = [PairSample("AB", base, head) for base, head in times]
        records = [PairRecord(0, "BA", "stop", base, head) for base, head in times]
        for pairs in (samples, records):
            logs = LogRatios.of(pairs)
            assert logs.cases == ("p", "d")
            assert logs.values == pytest.approx(np.array([[0, math.log(2)]] * 3))
            assert logs.gate == pytest.approx([math.log(2) / 2] * 3)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            ({"p": 0.0}, "Head took 0.0 s in case p of pair 2"),
            ({"p": math.nan}, "Head took nan s"),
            ({"p": math.inf}, "Head took inf s"),
            ({"q": 1.0}, "every case is measured on both sides"),
        ],
    )
    def test_refuses_pairs_that_are_none(self, head, message):
        with pytest.raises(ValueError, match=message):
            LogRatios.of([PairSample("AB", {"p": 1.0}, {"p": 1.0}), PairSample("AB", {"p": 1.0}, head)])

    @pytest.mark.parametrize(
        "wrong", [{"looks": ()}, {"looks": (12, 8)}, {"alpha": 0}, {"relevance": -0.1}, {"floors": {"a": 1.0}}]
    )
    def test_refuses_a_rule_that_is_none(self, wrong):
        with pytest.raises(ValueError, match=r"got|fractions"):
            Rule(**wrong)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10_000), st.sampled_from([-0.1, -0.02, 0.0, 0.02, 0.1]), st.sampled_from([0.001, 0.02, 0.2]))
    def test_laws_of_every_decision(self, seed, gain, spread):
        rng = np.random.default_rng(seed)
        pairs = LogRatios(("a", "b"), math.log1p(gain) + spread * rng.standard_t(3, size=(32, 2)))
        decision = attempt_from(Rule(), pairs)
        assert decision == attempt_from(Rule(), pairs)
        assert decision.kind != "continue"
        assert decision.why
        assert decision.estimate.low <= decision.estimate.gain <= decision.estimate.high
        assert decision.gates == (decision.kind == "faster")
        if decision.kind == "slower" and not decision.blocked_by:
            assert decision.estimate.high < 0
        if decision.kind == "no_difference":
            assert decision.estimate.largest <= 0.03
        if decision.gates:
            assert decision.p <= 0.1
            assert decision.estimate.pairs == decision.fresh == 8

    def test_looks_fit_the_budget(self):
        assert looks_within(24) == (8, 12, 18, 24)
        assert looks_within(20) == (8, 12, 20)
        assert looks_within(8) == (8,)
        assert looks_within(5) == (5,)
        assert looks_within(48) == (8, 12, 18, 24, 48)
        assert Rule(looks=looks_within(8)).decide(steady(0.5, 8)).kind == "inconclusive"


class TestRanking:
    def test_holm_and_benjamini_hochberg_of_a_worked_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
        assert holm([]) == benjamini_hochberg([]) == []

    @given(probabilities)
    def test_adjusted_ps_keep_order_and_holm_is_the_stricter(self, ps):
        strict, shown = holm(ps), benjamini_hochberg(ps)
        for p, q, h in zip(ps, shown, strict, strict=True):
            assert p <= q * (1 + 1e-9) + 1e-15
            assert q <= h * (1 + 1e-9) + 1e-15
            assert h <= 1
        order = sorted(range(len(ps)), key=ps.__getitem__)
        assert [strict[i] for i in order] == sorted(strict)
        assert [shown[i] for i in order] == sorted(shown)

    def test_equals_share_a_rank(self):
        entries = {
            "d": Estimate(0.05, 0.04, 0.06, 0.95, 8),
            "b": Estimate(0.20, 0.18, 0.22, 0.95, 8),
            "a": Estimate(0.50, 0.48, 0.52, 0.95, 8),
            "c": Estimate(0.21, 0.19, 0.23, 0.95, 8),
        }
        ranked = tiers(list(entries), better_than(entries))
        assert [(name, tier.label) for name, tier in ranked.items()] == [
            ("a", "1"),
            ("b", "2="),
            ("c", "2="),
            ("d", "4"),
        ]

    def test_pairs_that_were_never_compared_are_equal(self):
        assert {tier.label for tier in tiers(["a", "b", "c"], {}).values()} == {"1="}
        assert tiers([], {}) == {}

    def test_many_entries_ask_for_more_evidence(self):
        names = [f"entry-{n}" for n in range(20)]
        alone = tiers(names[:2], {("entry-0", "entry-1"): 0.01})
        among = tiers(
            names, {pair: 0.01 if pair == ("entry-0", "entry-1") else 0.5 for pair in itertools.combinations(names, 2)}
        )
        assert alone["entry-1"].rank == 2
        assert among["entry-1"].rank == 1

    def test_same_code_under_many_names_is_one_tier(self):
        rng = np.random.default_rng(5)
        wrong = 0
        for _ in range(200):
            entries = {f"e{n}": estimate(0.02 * rng.normal(size=8)) for n in range(6)}
            wrong += any(tier.rank > 1 for tier in tiers(list(entries), better_than(entries)).values())
        assert wrong <= 20

    def test_refuses_a_name_twice(self):
        with pytest.raises(ValueError, match="distinct"):
            tiers(["a", "a"], {})


class TestProportions:
    def test_published_examples(self):
        # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263, 0 of 20.
        assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
        assert clopper_pearson(81, 263) == pytest.approx((0.2527, 0.3676), abs=5e-5)
        assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
        assert clopper_pearson(0, 20) == pytest.approx((0, 0.1684), abs=5e-5)
        assert clopper_pearson(20, 20) == pytest.approx((0.8316, 1), abs=5e-5)

    @settings(deadline=None)
    @given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
    def test_intervals_hold_the_share_and_mirror(self, hits_total):
        hits, total = hits_total
        for interval in (wilson, clopper_pearson):
            low, high = interval(hits, total)
            assert 0 <= low <= hits / total <= high <= 1
            assert interval(total - hits, total) == pytest.approx((1 - high, 1 - low), abs=1e-9)

    def test_of_nothing_nothing_is_known(self):
        assert wilson(0, 0) == clopper_pearson(0, 0) == (0.0, 1.0)
        with pytest.raises(ValueError, match="no proportion"):
            wilson(3, 2)


class TestContention:
    calm = Observation(wall_seconds=10, processors=2, cpu_seconds=8)

    def read(self, **changes):
        return contended(msgspec.structs.replace(self.calm, **changes))

    def test_a_calm_stretch_is_sound(self):
        assert self.read() == ()
        assert self.read(run_delay_seconds=0.1, other_cpu_seconds=0.5, steal_seconds=0.1) == ()

    def test_says_what_disturbed(self):
        assert self.read(steal_seconds=1) == ("the hypervisor took 5.0 % of the processors (limit 2.0 %)",)
        busy = self.read(other_cpu_seconds=9.5, run_delay_seconds=4)
        assert "other processes used 47.5 %" in busy[0]
        assert "waited 50.0 %" in busy[1]
        assert self.read(other_accelerator_processes=1) == ("1 other process used the accelerator",)
        assert "held down: power cap" in self.read(throttled=("power cap",))[0]

    def test_a_module_that_starves_itself_keeps_its_pair(self):
        assert self.read(run_delay_seconds=50) == ()

    @given(st.floats(0, 20), st.floats(0, 20), st.floats(0, 20), st.floats(0, 5))
    def test_more_disturbance_never_makes_it_sound(self, delay, steal, other, more):
        less = self.read(run_delay_seconds=delay, steal_seconds=steal, other_cpu_seconds=other)
        for name, value in (("run_delay_seconds", delay), ("steal_seconds", steal), ("other_cpu_seconds", other)):
            readings = {"run_delay_seconds": delay, "steal_seconds": steal, "other_cpu_seconds": other} | {
                name: value + more
            }
            assert len(self.read(**readings)) >= len(less)

    def test_needs_a_stretch_of_time(self):
        with pytest.raises(ValueError, match="read it over time"):
            self.read(wall_seconds=0)

    def test_repeats_are_bounded(self):
        assert may_repeat(0, 0)
        assert not may_repeat(2, 2)
        assert not may_repeat(0, 12)


class TestRoofline:
    def test_a_time_that_the_machine_allows_is_possible(self):
        assert impossible(1e-3, 1e9, 1e9, 3e12, 1e15) is None

    def test_names_the_limit_that_was_broken(self):
        memory = impossible(1e-4, 1e9, 1e9, 3e12, 1e15)
        assert memory == (
            "100 µs is below the physical floor of 333 µs: the call must move at least 1 GB, "
            "and this machine's peak is 3 TB/s."
        )
        assert "do at least 1 TFLOP" in impossible(1e-4, 1e6, 1e12, 3e12, 1e15)

    def test_slack_lowers_the_floor(self):
        assert impossible(3.2e-4, 1e9, 0, 3e12, 1e15) is not None
        assert impossible(3.2e-4, 1e9, 0, 3e12, 1e15, slack=0.1) is None

    @pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
    def test_no_time_at_all_is_impossible(self, seconds):
        assert "cannot take" in impossible(seconds, 0, 0, 1, 1)

    def test_refuses_a_machine_without_peaks(self):
        with pytest.raises(ValueError, match="peaks positive"):
            impossible(1.0, 1, 1, 0, 1)


class TestCalibration:
    bank = QUIET_CORES.attempts(np.random.default_rng(8), 1, 120, 3)[0]

    def test_floors_hold_what_identical_code_shows(self):
        floors = floor_from_aa(self.bank)
        assert set(floors) == set(self.bank.cases)
        others = QUIET_CORES.attempts(np.random.default_rng(9), 300, 12, 3)
        for case, floor in floors.items():
            column = self.bank.cases.index(case)
            losses = [-estimate(other.values[:, column]).gain for other in others]
            assert 0.005 <= floor.floor < 0.06
            assert np.mean(np.array(losses) > floor.floor) < 0.08
            assert floor.bias.low <= 0 <= floor.bias.high
            assert 0.02 < floor.spread < 0.08

    def test_floor_is_never_below_what_matters(self):
        still = LogRatios(("a",), np.zeros((20, 1)))
        assert floor_from_aa(still)["a"].floor == 0.005

    def test_floor_needs_a_bank(self):
        with pytest.raises(ValueError, match="the bank has 4"):
            floor_from_aa(self.bank[:4])

    def test_rates_come_with_intervals_and_repeat(self):
        rate = false_gate_rate(Rule(), self.bank, attempts=200)
        assert rate == false_gate_rate(Rule(), self.bank, attempts=200)
        assert rate.low <= rate.rate <= rate.high < 0.05

    def test_a_biased_bank_shows(self):
        assert false_gate_rate(Rule(), self.bank.times(1.05), attempts=50).rate > 0.9

    def test_power_rises_with_the_effect(self):
        powers = [gate_power(Rule(), self.bank, gain, attempts=60).rate for gain in (0.0, 0.02, 0.08)]
        assert powers == sorted(powers)
        assert powers[-1] == 1.0
        assert loss_power(Rule(), self.bank, 0.08, attempts=60).rate == 1.0

    def test_detectable_effect_is_found_with_its_power(self):
        bank = ACCELERATOR.attempts(np.random.default_rng(8), 1, 120, 2)[0]
        effect = detectable_effect(Rule(), bank, attempts=60)
        assert 0.005 < effect < 0.03
        assert detectable_effect(Rule(), bank, attempts=20, largest=0.001) is None

    def test_running_out_of_pairs_is_said(self):
        with pytest.raises(ValueError, match="32 always suffice"):
            attempt_from(Rule(), steady(0.1, 15))
        with pytest.raises(ValueError, match="The bank is empty"):
            gate_power(Rule(), self.bank[:0], 0.0)
