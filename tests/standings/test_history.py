"""The history of the branch, merge by merge."""

from swapbench.standings.history import cases, merges
from swapbench.submissions.models import Submission


def test_merges_come_oldest_first_with_their_verdicts(full: dict[int, Submission]) -> None:
    found = merges()
    assert [merge.entry.submission.pull_request.number for merge in found] == [1, 2, 3, 7, 9]
    assert [[verdict.name for verdict in merge.verdicts] for merge in found][:2] == [["skip-empty"], ["decode-grouped"]]


def test_a_change_point_is_where_the_interval_lies_above_the_best_before(full: dict[int, Submission]) -> None:
    for history in cases(merges(), kind="attention"):
        first, second, third = history.measurements
        assert first.better == (first.speedup.low > 0)
        assert second.better == (second.speedup.low > first.speedup.high)
        assert third.better == (third.speedup.low > second.speedup.high), "the second was the best before"
        assert history.best == third.speedup


def test_cases_are_narrowed_to_a_kind_and_a_machine_class(full: dict[int, Submission]) -> None:
    everything = cases(merges())
    assert {history.kind for history in everything} == {"attention", "quantization", "normalization"}
    assert {history.kind for history in cases(merges(), kind="quantization")} == {"quantization"}
    assert cases(merges(), machine_class="other") == []


def test_an_empty_branch_has_no_history(db: None) -> None:
    assert (merges(), cases([])) == ([], [])
