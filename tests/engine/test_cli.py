"""`python -m engine generate` prints text, and says what is wrong in one line."""

import pytest

from engine.__main__ import main, slots_of
from engine.slots.registry import SlotError
from tests.engine.cast import REFERENCE

FAST = ["--dtype", "float32", "--max-len", "256", "--max-tokens", "8"]


def test_one_prompt_prints_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(REFERENCE), "import os\n", *FAST, "--stats"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip()
    assert "8 tokens" in printed.err
    assert "TPOT" in printed.err


def test_several_prompts_are_printed_apart_and_a_bad_one_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(REFERENCE), "def f(", "x" * 2000, "class A", *FAST]) == 1
    printed = capsys.readouterr()
    assert "--- 1" in printed.out
    assert "--- 3" in printed.out
    assert "error: prompt 2: The prompt has" in printed.err


def test_quantization_is_a_name_or_patterns() -> None:
    assert slots_of(["attention=sdpa"], "int8wo") == {"attention": "sdpa", "quantization": "int8wo"}
    assert slots_of([], '{"layers.*.mlp.*": "int8wo"}') == {"quantization": {"layers.*.mlp.*": "int8wo"}}
    with pytest.raises(SlotError, match="KIND=NAME"):
        slots_of(["attention"], None)
    with pytest.raises(SlotError, match="not valid JSON"):
        slots_of([], "{")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere", "x"], "has no config.json"),
        ([str(REFERENCE), "x", "--top-p", "3"], "top_p is 3.0"),
        ([str(REFERENCE), "x", "--device", "abacus"], "is no device"),
        ([str(REFERENCE), "x", "--slot", "attention=none"], "There is no attention called 'none'"),
        ([str(REFERENCE), "x", "--chat"], "no chat template"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *arguments, "--max-len", "64"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
