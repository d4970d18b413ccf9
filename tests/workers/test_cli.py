"""What `swapbench check` prints."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from workers.cli import COULD_NOT_JUDGE, Stages, exit_status, main, show, why_not_written
from workers.protocol import ImplementationOutcome, Outcome, Progress, Reason

SEED = "9a5f7ae116fce977cf51347278cb" + 36 * "0"
COMMAND = (
    f".venv/bin/swapbench check --base 24073b43aa00 --suite unit --only engine/activation/my_swiglu.py --seed {SEED}"
)


def printed(outcome: Outcome, width: int) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width), outcome)
    return file.getvalue()


def failed(reasons: int, summary: str = "") -> Outcome:
    wrong = [
        Reason("wrong_output", f"Element {n} is wrong.", "unit", f"case-{n}", reproduce=COMMAND) for n in range(reasons)
    ]
    path = "engine/activation/my_swiglu.py"
    item = ImplementationOutcome(path, "activation", "my-swiglu", "E", "failed", wrong, summary=summary)
    return Outcome("a", "failed", [item], [])


@pytest.mark.parametrize("width", [40, 80, 120, 220])
def test_the_command_that_tries_it_again_is_one_line_and_there_once(width: int) -> None:
    assert printed(failed(5), width).splitlines().count(COMMAND) == 1


def test_the_first_reasons_are_shown_and_the_others_counted() -> None:
    text = printed(failed(5), 120)
    assert [f"Element {n} is wrong." in text for n in range(5)] == [True, True, True, False, False]
    assert "2 other reasons" in text
    assert "other reasons" not in printed(failed(3), 120)


def test_what_stopped_it_is_told_once() -> None:
    assert printed(failed(2, "Element 0 is wrong."), 120).count("Element 0 is wrong.") == 1
    assert "Another sentence." in printed(failed(2, "Another sentence."), 120)


def test_what_is_not_for_this_machine_was_not_judged() -> None:
    reasons = [Reason("unsupported", "It is for cuda; the machine class cpu-x86 is cpu.", "unit")]
    item = ImplementationOutcome("engine/activation/my_swiglu.py", "activation", "my-swiglu", "E", "failed", reasons)
    assert exit_status(Outcome("a", "failed", [item], [])) == COULD_NOT_JUDGE


def test_a_stage_that_counted_nothing_does_not_stay_open() -> None:
    file = io.StringIO()
    with Stages(Console(file=file, width=100, force_terminal=True)) as stages:
        stages.report(Progress("a", "checkout", "Fetching"))
        stages.report(Progress("a", "unit", "The unit suite begins", 3, 7))
    last = file.getvalue().rpartition("checkout")[2]
    assert "1/1" in last
    assert "0/?" not in last
    assert "3/7" in last


def test_where_to_write_is_looked_at_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--json", str(tmp_path / "none" / "outcome.json")]) == COULD_NOT_JUDGE
    assert "there is no folder" in capsys.readouterr().out


@pytest.mark.parametrize("seed", ["zz", "161e3b35", ""])
def test_a_seed_that_is_none_is_said_in_words(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--seed", seed])
    assert ended.value.code == 2
    assert "a seed has 64 hex digits" in capsys.readouterr().err


def test_where_an_outcome_cannot_be_written_is_said_before_anything_is_judged(tmp_path: Path) -> None:
    for file, words in (
        (tmp_path / "none" / "o.json", "no folder"),
        (tmp_path, "Is a directory"),
        (Path("/proc/x"), "cannot be written"),
    ):
        assert words in why_not_written(file)
    assert why_not_written(tmp_path / "o.json") == ""
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept.json").write_text("before")
    assert why_not_written(tmp_path / "kept.json") == ""
    assert (tmp_path / "kept.json").read_text() == "before"
