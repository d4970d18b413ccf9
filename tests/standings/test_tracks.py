"""Who has a place on a track, which, and who is on the Pareto front."""

from hypothesis import given
from hypothesis import strategies as st

from swapbench.standings.tracks import Point, Track, pareto_front, ranked, standings, tracks
from swapbench.submissions.models import Attempt, PullRequest, Submission, Verdict
from tests.web import sample
from workers.protocol import Interval

ATTENTION = Track("attention", "E", sample.MACHINE)
QUANTIZATION = Track("quantization", "Q8", sample.MACHINE)


def names(track: Track = ATTENTION) -> list[str]:
    return [place.verdict.name for place in standings(track)]


def test_a_rank_is_one_plus_the_number_of_significantly_better_entries() -> None:
    ranks = ranked(
        {
            "a": Interval(0.50, 0.48, 0.52),
            "b": Interval(0.30, 0.26, 0.34),
            "c": Interval(0.29, 0.25, 0.33),
            "d": Interval(0.01, -0.01, 0.03),
        }
    )
    assert {name: tier.label for name, tier in ranks.items()} == {"a": "1", "b": "2=", "c": "2=", "d": "4"}


def test_what_cannot_be_compared_is_ranked_all_the_same() -> None:
    assert ranked({"a": Interval(-1.0, -1.0, 0.0), "b": Interval(0.1, 0.0, 0.2)})["a"].label == "1="
    assert ranked({}) == {}


POINTS = st.dictionaries(st.text(max_size=3), st.builds(Point, *[st.integers(0, 4).map(float)] * 3), max_size=8)


@given(POINTS)
def test_the_front_is_what_nothing_else_beats_in_everything(points: dict[str, Point]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for name, own in points.items():
        beaten = any(
            other.speedup >= own.speedup and other.loss <= own.loss and other.memory <= own.memory and other != own
            for other in points.values()
        )
        assert (name in front) != beaten


def test_only_what_passed_and_was_measured_has_a_place(full: dict[int, Submission]) -> None:
    assert names() == ["varlen-grouped", "paged-onepass", "decode-grouped", "skip-empty", "varlen-renamed"]
    assert names(QUANTIZATION) == ["int8-channel", "int8-outlier"]
    assert tracks() == [ATTENTION, Track("normalization", "E", sample.MACHINE), QUANTIZATION]


def test_an_older_head_and_a_pull_request_turned_down_have_no_place(full: dict[int, Submission]) -> None:
    PullRequest.objects.filter(number=3).update(head_sha="f" * 40)
    PullRequest.objects.filter(number=12).update(state=PullRequest.State.CLOSED)
    assert names() == ["decode-grouped", "skip-empty", "varlen-renamed"]


def test_the_newest_suite_version_counts(full: dict[int, Submission]) -> None:
    verdict = Verdict.objects.get(name="skip-empty")
    again = Attempt.objects.create(
        submission=full[1], suite_version="next", machine_class=sample.MACHINE, token="0" * 64
    )
    verdict.pk, verdict.suite_version, verdict.attempt = None, "next", again
    verdict.track_speedup, verdict.track_speedup_low, verdict.track_speedup_high = 0.9, 0.85, 0.95
    verdict.save()
    assert names().count("skip-empty") == 1
    assert names()[0] == "skip-empty"


def test_quality_below_the_noise_floor_puts_nobody_on_the_front(full: dict[int, Submission]) -> None:
    front = {place.verdict.name for place in standings(ATTENTION) if place.on_front}
    assert front == {"varlen-grouped"}
    Verdict.objects.filter(name="varlen-grouped").update(quality={"mean_kl": 1e-3, "noise_floor_kl": 1e-6})
    front = {place.verdict.name for place in standings(ATTENTION) if place.on_front}
    assert front == {"varlen-grouped", "paged-onepass"}
