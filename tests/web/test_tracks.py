"""Who has a place on a track, and which."""

import pytest

from swapbench.submissions.models import Submission, Verdict
from swapbench.web import tracks
from tests.web import sample


def entries(kind: str = "attention", quality_class: str = "E") -> list[tracks.Entry]:
    return tracks.board(kind, quality_class, sample.MACHINE).entries


def names(kind: str = "attention", quality_class: str = "E") -> list[str]:
    return [entry.verdict.name for entry in entries(kind, quality_class)]


def test_a_board_is_in_order_of_rank_and_equals_share_one(full: dict[int, Submission]) -> None:
    assert [entry.rank for entry in entries()] == ["1=", "1=", "3", "4", "5"]
    assert [entry.tier_start for entry in entries()] == [False, False, True, True, True]


def test_a_list_of_tracks_names_all_who_lead(full: dict[int, Submission]) -> None:
    (track,) = next(group for group in tracks.groups() if group.kind == "attention").tracks
    assert [entry.verdict.name for entry in track.leaders] == ["varlen-grouped", "paged-onepass"]
    assert track.best is not None


def test_only_what_passed_has_a_place(full: dict[int, Submission]) -> None:
    assert names() == ["varlen-grouped", "paged-onepass", "decode-grouped", "skip-empty", "varlen-renamed"]
    assert names("quantization", "Q8") == ["int8-channel", "int8-outlier"]


def test_a_board_says_what_is_merged_and_what_is_queued(full: dict[int, Submission]) -> None:
    states = {entry.verdict.name: (entry.merged, entry.queued) for entry in entries()}
    assert states["varlen-grouped"] == (True, False)
    assert states["paged-onepass"] == (False, True)
    assert states["varlen-renamed"] == (False, False)


def test_memory_is_told_from_what_was_measured(full: dict[int, Submission]) -> None:
    (best, _other) = entries("quantization", "Q8")
    assert best.memory == pytest.approx(0.506)
    Verdict.objects.filter(name="int8-channel").update(figures={"bits per weight": 8.0})
    (best, _other) = entries("quantization", "Q8")
    assert best.memory == pytest.approx(0.5)
    assert best.memory_text == "8.00\u202fbit"


@pytest.mark.django_db
def test_an_empty_track_is_a_board_without_entries() -> None:
    board = tracks.board("adapter", "E", "cpu")
    assert (board.entries, board.has_memory, board.has_quality) == ([], False, False)
