"""What `swapbench check` prints."""

import io

import pytest
from rich.console import Console

from workers.cli import main, show
from workers.protocol import ImplementationOutcome, Outcome, Reason

SEED = "9a5f7ae116fce977cf51347278cb" + 36 * "0"
COMMAND = (
    f".venv/bin/swapbench check --base 24073b43aa00 --suite unit --only engine/activation/my_swiglu.py --seed {SEED}"
)


def printed(outcome: Outcome, width: int) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width), outcome)
    return file.getvalue()


def failed(reasons: int) -> Outcome:
    wrong = [
        Reason("wrong_output", f"Element {n} is wrong.", "unit", f"case-{n}", reproduce=COMMAND) for n in range(reasons)
    ]
    item = ImplementationOutcome("engine/activation/my_swiglu.py", "activation", "my-swiglu", "E", "failed", wrong)
    return Outcome("a", "failed", [item], [])


@pytest.mark.parametrize("width", [40, 80, 120, 220])
def test_the_command_that_tries_it_again_is_one_line_and_there_once(width: int) -> None:
    assert printed(failed(5), width).splitlines().count(COMMAND) == 1


def test_the_first_reasons_are_shown_and_the_others_counted() -> None:
    text = printed(failed(5), 120)
    assert [f"Element {n} is wrong." in text for n in range(5)] == [True, True, True, False, False]
    assert "2 other reasons" in text
    assert "other reasons" not in printed(failed(3), 120)


@pytest.mark.parametrize("seed", ["zz", "161e3b35", ""])
def test_a_seed_that_is_none_is_said_in_words(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", "--seed", seed])
    assert ended.value.code == 2
    assert "a seed has 64 hex digits" in capsys.readouterr().err
