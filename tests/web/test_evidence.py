"""What the tables of a verdict say."""

import math

import pytest

from swapbench.web import evidence, quantities
from swapbench.web.comparison import compared, ratio_of
from swapbench.web.progress import stages_of_outcome, stages_of_running
from tests.web import sample
from workers.protocol import CaseSpeed, Interval


def test_quality_is_held_to_the_declared_class() -> None:
    quality = {"delta_ppl": 0.004, "mean_kl": 0.02, "top1": 0.985}
    held = {str(row.label): row.held for row in evidence.quality_table(quality, "Q8").rows}
    assert held == {"Perplexity, change": True, "Mean KL divergence": False, "Same top-1 token": True}
    held = {str(row.label): row.held for row in evidence.quality_table(quality, "Q4").rows}
    assert all(held.values())


def test_class_e_has_no_constant_limit_on_the_kl() -> None:
    quality = {"mean_kl": 2e-6, "noise_floor_kl": 1.4e-6}
    (row,) = evidence.quality_table(quality, "E").rows
    assert (row.held, row.limit) == (None, "2 × noise floor")
    (row,) = evidence.quality_table(quality, "E", meets=("E",)).rows
    assert row.held is True


def test_quality_shows_intervals_and_what_they_rest_on() -> None:
    table = evidence.quality_table(
        {"delta_ppl": 0.004, "delta_ppl_low": 0.003, "delta_ppl_high": 0.005, "tokens": 24576.0}, "Q8"
    )
    assert table.rows[0].range == "+0.300\u202f% … +0.500\u202f%"
    assert [(str(label), text) for label, text in table.facts] == [("Tokens scored", "24,576")]


def test_failed_tests_come_first() -> None:
    (group,) = evidence.test_groups(
        [
            {"suite": "unit", "name": "a", "outcome": "passed", "seconds": 1.0},
            {"suite": "unit", "name": "b", "outcome": "failed", "seconds": 2.0, "sentence": "Wrong."},
        ]
    )
    assert [test.name for test in group.tests] == ["b", "a"]
    assert (group.passed, group.failed, group.seconds) == (1, 1, 3.0)


def test_a_ratio_of_speed_ups_has_the_wider_interval() -> None:
    base, head = Interval(0.10, 0.08, 0.12), Interval(0.21, 0.18, 0.24)
    ratio = ratio_of(base, head)
    assert ratio is not None
    assert ratio.estimate == pytest.approx(0.1)
    assert (
        math.log(1.24 / 1.18)
        < math.log1p(ratio.high) - math.log1p(ratio.low)
        < math.log(1.24 / 1.18) + math.log(1.12 / 1.08)
    )
    assert ratio_of(base, base) is not None
    assert ratio_of(Interval(-1.0, -1.0, 0.0), head) is None


def test_cases_of_only_one_side_are_kept_without_a_ratio() -> None:
    one = CaseSpeed("a", 1.0, 0.9, Interval(0.1, 0.05, 0.15))
    other = CaseSpeed("b", 1.0, 0.9, Interval(0.1, 0.05, 0.15))
    rows = compared([one], [one, other])
    assert [(row.case, row.ratio is None) for row in rows] == [("a", False), ("b", True)]


def test_bars_of_a_running_attempt() -> None:
    entered = [
        {"stage": "checkout", "since": 10.0},
        {"stage": "unit", "since": 11.5},
        {"stage": "integration", "since": 30.0},
    ]
    bars = stages_of_running("integration", 3, 12, entered)
    assert [(bar.name, bar.state) for bar in bars] == [
        ("checkout", "done"),
        ("unit", "done"),
        ("integration", "now"),
        ("performance", "ahead"),
        ("report", "ahead"),
    ]
    assert [bar.seconds for bar in bars[:3]] == [1.5, 18.5, None]
    assert (bars[2].done, bars[2].total) == (3, 12)


def test_bars_of_an_attempt_that_has_not_begun_are_empty() -> None:
    assert {bar.state for bar in stages_of_running("", 0, 0, [])} == {"ahead"}


def test_the_stage_that_failed_is_red() -> None:
    failed = next(one for one in sample.SAMPLES if one.name == "tiled-mask")
    bars = {bar.name: bar.state for bar in stages_of_outcome(sample.outcome_of(failed))}
    assert bars == {"checkout": "done", "unit": "bad", "integration": "ahead", "performance": "ahead", "report": "done"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (quantities.signed_percent(0.123), "+12.3 %"),
        (quantities.signed_percent(-0.123), "−12.3 %"),
        (quantities.signed_percent(0.0001), "0.0 %"),
        (quantities.signed_percent(-0.0001), "0.0 %"),
        (quantities.signed_percent(float("nan")), "–"),
        (quantities.interval_range(Interval(0.1, -0.02, 0.2)), "−2.0 … +20.0 %"),
        (quantities.seconds(0.00123), "1.23 ms"),
        (quantities.seconds(47.1e-6), "47.1 µs"),
        (quantities.seconds(2.5), "2.50 s"),
        (quantities.seconds(3e-9), "3.00 ns"),
        (quantities.duration(0.42), "0.4 s"),
        (quantities.duration(134), "2 min 14 s"),
        (quantities.duration(3 * 3600 + 300), "3 h 05 min"),
        (quantities.size(1536), "1.50 KiB"),
        (quantities.size(12), "12 B"),
        (quantities.plain(2.1e-6), "2.1 × 10⁻⁶"),
        (quantities.plain(0.0024), "0.0024"),
        (quantities.plain(12.44), "12.4"),
        (quantities.plain(1234567.0), "1,234,567"),
        (quantities.probability(0.0004), "p < 0.001"),
        (quantities.figure("bits per weight", 8.06), "8.06 bit"),
        (quantities.figure("memory ratio", 0.5), "0.50 ×"),
        (quantities.figure("compile seconds", 42.0), "42 s"),
        (quantities.figure("peak bytes", 1048576.0), "1.00 MiB"),
    ],
)
def test_quantities_are_written_with_their_units(text: str, expected: str) -> None:
    assert text.replace("\u202f", " ") == expected
