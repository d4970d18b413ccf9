"""The figures say what the numbers say, hold no style, and survive odd numbers."""

import xml.etree.ElementTree as ElementTree

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapbench.mergequeue.models import QueueEntry
from swapbench.standings.history import CaseHistory, Measurement, Merge
from swapbench.submissions.models import PullRequest, Submission
from swapbench.web import wording
from swapbench.web.figures.intervals import interval_axis, interval_row, shared_scale
from swapbench.web.figures.limits import limit_bar
from swapbench.web.figures.pairs import pair_plot, pair_points
from swapbench.web.figures.pareto import FrontPoint, pareto_figure
from swapbench.web.figures.series import series_plot
from swapbench.web.figures.svg import ticks
from tests.web import sample
from workers.protocol import Interval, PairRecord, Performance

FASTER = Interval(0.12, 0.10, 0.14)
SLOWER = Interval(-0.05, -0.07, -0.03)
UNDECIDED = Interval(0.01, -0.02, 0.04)


def tree(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        assert "style" not in element.attrib
    return root


@pytest.mark.parametrize(("interval", "tone"), [(FASTER, "good"), (SLOWER, "bad"), (UNDECIDED, "")])
def test_an_interval_is_coloured_only_where_it_leaves_zero_out(interval: Interval, tone: str) -> None:
    root = tree(interval_row(interval, shared_scale([FASTER, SLOWER, UNDECIDED])))
    (dot,) = root.iter("circle")
    assert dot.attrib["class"].split()[1:] == ([tone] if tone else [])


def test_an_interval_is_named_for_those_who_do_not_see_it() -> None:
    label = tree(interval_row(FASTER, shared_scale([FASTER]))).attrib["aria-label"].replace("\u202f", " ")
    assert label == "+12.0 %, 95 % interval +10.0 … +14.0 %"


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.floats(-0.99, 50)] * 3).map(sorted), min_size=1, max_size=8))
def test_every_interval_lies_on_its_drawing(values: list[list[float]]) -> None:
    intervals = [Interval(middle, low, high) for low, middle, high in values]
    scale = shared_scale(intervals)
    for interval in intervals:
        root = tree(interval_row(interval, scale))
        for element in root.iter("line"):
            assert 0 <= float(element.attrib["x1"]) <= float(element.attrib["x2"]) <= 240
    tree(interval_axis(scale))


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 11
    assert all(low - width * 1e-6 <= value <= low + width * (1 + 1e-6) for value in found)


def test_pairs_are_positive_where_head_is_faster_and_marked_by_order() -> None:
    pairs = [
        PairRecord(0, "AB", "stop", {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}),
        PairRecord(1, "BA", "confirm", {"a": 1.0}, {"a": 2.0}),
        PairRecord(2, "BA", "confirm", {}, {}),
        PairRecord(3, "AB", "confirm", {"a": 0.0}, {"a": 1.0}),
    ]
    points = pair_points(pairs)
    assert [point.speedup for point in points] == [pytest.approx(2**0.5 - 1), pytest.approx(-0.5)]
    root = tree(pair_plot(Performance("inconclusive", "", pairs)))
    assert [circle.attrib["class"] for circle in root.iter("circle")] == ["hollow", "solid"]
    assert "confirming pairs" in "".join(root.itertext())


def test_a_suite_without_pairs_says_so() -> None:
    assert "No pairs were measured." in pair_plot(Performance("not_measured", "", []))


def test_a_pair_that_was_measured_again_says_how_often() -> None:
    performance = sample.performance_of(sample.SAMPLES[0])
    assert performance is not None
    assert "measured again 1 times" in pair_plot(performance)


@pytest.mark.parametrize("value", [0.0, 0.0005, 0.012, 0.5, 40.0, -0.01, float("inf"), float("nan")])
@pytest.mark.parametrize("quality_class", ["E", "Q8", "Q4", "S", ""])
def test_bars_of_limits_stay_on_their_drawing(value: float, quality_class: str) -> None:
    for metric in wording.METRICS.values():
        for rect in tree(limit_bar(metric, value, quality_class)).iter("rect"):
            assert 0 <= float(rect.attrib["width"]) <= 240


def test_a_series_marks_where_main_became_better() -> None:
    pull = PullRequest(number=7)
    merge = Merge(QueueEntry(submission=Submission(pull_request=pull)), [])
    history = CaseHistory(
        "attention", "cpu", "case", [Measurement(merge, FASTER, True), Measurement(merge, SLOWER, False)], FASTER
    )
    root = tree(series_plot(history))
    assert len([line for line in root.iter("line") if line.attrib["class"] == "change"]) == 1
    assert "#7: +12.0" in "".join(root.itertext())
    assert "Nothing was merged yet." in series_plot(CaseHistory("attention", "cpu", "case"))


def test_the_pareto_figure_is_one_that_plotly_takes() -> None:
    figure = pareto_figure([FrontPoint("a", "alice", FASTER, 0.001, 0.5, True), FrontPoint("b", "bob", SLOWER)])

    def plain(value: object) -> object:
        """Colour tokens as plot.js resolves them."""
        if isinstance(value, str) and value.startswith("token:"):
            return "Arial" if value == "token:--sans" else "#123456"
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    checked = go.Figure(plain(figure))
    assert list(checked.data[0].x) == [0.12]
    assert list(checked.data[1].x) == [-0.05]
