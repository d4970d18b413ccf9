"""Who has a place on a track, and which."""

import pytest

from swapbench.submissions.models import Attempt, PullRequest, Submission, Verdict
from swapbench.web import tracks
from tests.web import sample
from workers.protocol import Interval


def names(kind: str = "attention", quality_class: str = "E") -> list[str]:
    return [entry.verdict.name for entry in tracks.entries(kind, quality_class, sample.MACHINE)]


def test_a_rank_is_one_plus_the_number_of_significantly_better_entries() -> None:
    ranks = tracks.ranked(
        {
            "a": Interval(0.50, 0.48, 0.52),
            "b": Interval(0.30, 0.26, 0.34),
            "c": Interval(0.29, 0.25, 0.33),
            "d": Interval(0.01, -0.01, 0.03),
        }
    )
    assert {name: tier.label for name, tier in ranks.items()} == {"a": "1", "b": "2=", "c": "2=", "d": "4"}


def test_what_cannot_be_compared_is_ranked_all_the_same() -> None:
    assert tracks.ranked({"a": Interval(-1.0, -1.0, 0.0), "b": Interval(0.1, 0.0, 0.2)})["a"].label == "1="
    assert tracks.ranked({}) == {}


def test_only_what_passed_has_a_place(full: dict[int, Submission]) -> None:
    assert names() == ["varlen-grouped", "paged-onepass", "decode-grouped", "skip-empty", "varlen-renamed"]
    assert names("quantization", "Q8") == ["int8-channel", "int8-outlier"]


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


def test_the_front_holds_what_nothing_else_beats_in_everything(full: dict[int, Submission]) -> None:
    front = {entry.verdict.name: entry.on_front for entry in tracks.entries("quantization", "Q8", sample.MACHINE)}
    assert front == {"int8-channel": True, "int8-outlier": True}
    Verdict.objects.filter(name="int8-outlier").update(quality={"mean_kl": 0.009})
    front = {entry.verdict.name: entry.on_front for entry in tracks.entries("quantization", "Q8", sample.MACHINE)}
    assert front == {"int8-channel": True, "int8-outlier": False}


@pytest.mark.django_db
def test_an_empty_track_is_a_board_without_entries() -> None:
    board = tracks.board("adapter", "E", "cpu")
    assert (board.entries, board.has_memory, board.has_quality) == ([], False, False)
