"""Profiling: a trace of a case from the sandbox, and sentences where there is none."""

import json
from pathlib import Path

import pytest

from engine.slots.kind import Case
from workers.calibrate import workspace
from workers.host.profiled import OPERATORS, TRACE
from workers.profile import NotProfiled, chosen_case, chosen_file, main, profile

PATH = "engine/activation/plain.py"


def test_a_case_leaves_a_trace_and_a_table_of_operators(tmp_path: Path) -> None:
    with workspace() as made:
        case, seconds, files = profile(made, PATH, None, 4, tmp_path)
    assert sorted(files) == [OPERATORS, TRACE]
    assert len(seconds) == 4
    assert all(value > 0 for value in seconds)
    events = json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    assert sum(event.get("name") == "call: swiglu" and event.get("cat") == "user_annotation" for event in events) == 4
    assert any(event.get("name") == "aten::silu" for event in events)
    assert "aten::silu" in (tmp_path / OPERATORS).read_text()
    assert case.name


def test_the_command_names_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", PATH, "--case", "no-such-case"]) == 2
    said = capsys.readouterr().out
    assert "There is no case 'no-such-case'. There are:" in said


@pytest.mark.parametrize("path", ["engine/quality.py", "engine/attention/none.py", "/etc/passwd"])
def test_only_slot_files_are_profiled(path: str) -> None:
    with pytest.raises(NotProfiled, match="is no slot file here"):
        chosen_file(path, "HEAD")


def test_the_first_case_is_the_default() -> None:
    cases = [Case("a", "float32", {}), Case("b", "float32", {})]
    assert chosen_case(cases, None).name == "a"
    assert chosen_case(cases, "b").name == "b"
    with pytest.raises(NotProfiled, match="supports none"):
        chosen_case([], None)
