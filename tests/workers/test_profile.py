"""Profiling: a trace of a case from the sandbox, and sentences where there is none."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from engine.slots.kind import Case
from workers.calibrate import workspace
from workers.host.counted import REPORT, WORDS
from workers.host.profiled import OPERATORS, TRACE
from workers.profile import (
    NotProfiled,
    chosen_case,
    chosen_file,
    kernel_table,
    kernels_of,
    main,
    nsight_folder,
    profile,
)

PATH = "engine/activation/plain.py"


def test_a_case_leaves_a_trace_and_a_table_of_operators(tmp_path: Path) -> None:
    with workspace() as made:
        found = profile(made, PATH, None, 4, tmp_path)
    assert sorted(found.files) == [OPERATORS, TRACE]
    assert len(found.seconds) == 4
    assert all(value > 0 for value in found.seconds)
    events = json.loads((tmp_path / TRACE).read_text())["traceEvents"]
    assert sum(event.get("name") == "call: swiglu" and event.get("cat") == "user_annotation" for event in events) == 4
    assert any(event.get("name") == "aten::silu" for event in events)
    assert "aten::silu" in (tmp_path / OPERATORS).read_text()
    assert found.case.name


NCU = """#!/bin/sh
# As Nsight Compute: runs a program and leaves a report; tells in words what is in one.
if [ "$1" = --import ]; then echo "kernels of $2"; exit; fi
while [ $# -gt 0 ]; do
    case "$1" in
        --export) out=$2; shift 2 ;;
        --force-overwrite) shift ;;
        --*) shift 2 ;;
        *) break ;;
    esac
done
%s
"""


def nsight(folder: Path, ending: str) -> Path:
    """A folder as Nsight Compute's is laid out."""
    (folder / "nsight" / "target").mkdir(parents=True)
    program = folder / "nsight" / "ncu"
    program.write_text(NCU % ending)
    program.chmod(0o755)
    return folder / "nsight"


def test_nsight_computes_report_is_written_before_its_host_is_taken_down(tmp_path: Path) -> None:
    own = tmp_path / "found"
    own.mkdir()
    # It closes what it was not told to keep, and writes when the program has ended.
    counting = nsight(tmp_path, '"$@" 3<&- && printf report > "$out"')
    with workspace() as made:
        found = profile(made, PATH, None, 2, own, counting)
    assert not found.not_counted
    assert (own / REPORT).read_text() == "report"
    assert (own / WORDS).read_text() == f"kernels of /profile/{REPORT}\n"
    assert (own / TRACE).exists()


@pytest.mark.parametrize("ending", ["exit 3", 'printf x > "$out.txt"; "$@"', "exec sleep 1"])
def test_where_nsight_compute_fails_the_trace_is_there_and_the_reason(tmp_path: Path, ending: str) -> None:
    own = tmp_path / "found"
    own.mkdir()
    with workspace() as made:
        found = profile(made, PATH, None, 2, own, nsight(tmp_path, ending))
    assert found.not_counted
    assert REPORT not in found.files
    assert (own / TRACE).exists()


WORDS_OF_TWO = """==PROF== Connected to process 18
[18] python3.12@127.0.0.1
  norm_kernel (8192, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    DRAM Frequency                  Ghz         3.20
    Memory Throughput                 %        77.24
    Duration                         us        65.60
    Compute (SM) Throughput           %        30.45
    ----------------------- ----------- ------------

    OPT   Memory is more heavily utilized than Compute: Look at the Memory Workload Analysis section to identify the
          DRAM bottleneck.

    Metric Name                          Metric Unit    Metric Value
    Block Size                                                   256
    Achieved Occupancy                        %        92.52
  void at::<unnamed>::copy<128, 4>(int, T1) (1,024, 1, 1)x(128, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Memory Throughput                 %        25.63
    Duration                         ms         1.50
  norm_kernel (8192, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Duration                         us        67.60
"""


def test_what_nsight_compute_says_of_each_kernel_is_read() -> None:
    copy, norm = kernels_of(WORDS_OF_TWO)
    assert copy.name == "void at::<unnamed>::copy<128, 4>(int, T1)"
    assert (copy.launches, copy.figures) == (1, {"Duration": 1500.0, "Memory Throughput": 25.63})
    assert norm.launches == 2
    assert norm.figures["Duration"] == pytest.approx(66.6)
    assert norm.figures["Achieved Occupancy"] == 92.52
    assert kernels_of("Error: nothing was profiled\n    Duration  us  1") == []
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(kernel_table([copy, norm]))
    assert "1500.0" in console.export_text()


def test_the_newest_nsight_compute_is_found(tmp_path: Path) -> None:
    for version in ("2024.3.2", "2025.10.0", "2025.3.1"):
        nsight(tmp_path / version, "exit").rename(tmp_path / f"v-{version}")
    assert nsight_folder("", [f"{tmp_path}/v-*"]) == tmp_path / "v-2025.10.0"
    assert nsight_folder(str(tmp_path / "v-2024.3.2"), []) == tmp_path / "v-2024.3.2"
    assert nsight_folder("", []) is None


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
