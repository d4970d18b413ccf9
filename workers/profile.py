"""`swapbench profile`: where the time of one case goes, by torch.profiler and Nsight Compute, in the sandbox in which it would be judged."""

import argparse
import os
import re
import shutil
import statistics
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.slots.header import HeaderError, kind_of_path
from engine.slots.kind import CallFailed, Case, HeldSet
from engine.slots.source import Source
from workers import wire
from workers.calibrate import Workspace, workspace
from workers.checkout import Trees
from workers.host.counted import KERNELS, REPORT, WORDS
from workers.host.profiled import FOLDER, OPERATORS, TRACE, WARM_UP_CALLS
from workers.judge import machine
from workers.judge.client import HostClient
from workers.judge.hosts import Hosts
from workers.judge.trial import SteadyHost, Trial, Wrong, prepared, settled, subject
from workers.protocol import SlotFile
from workers.sandbox import MIB, HostProcess, NoLevel, SandboxError, best_level, collect
from workers.suites.version import ROOT
from workers.workingtree import WorkingTreeError, read_working_tree

MAX_TRACE_BYTES = 256 * MIB
STAGE_SECONDS = 300.0
COUNTING_SECONDS = 240.0
"""For one call whose kernels are each run ten times and more, or for writing the report."""
FIGURES = {
    "Duration": "us",
    "Memory Throughput": "memory %",
    "Compute (SM) Throughput": "compute %",
    "Achieved Occupancy": "occupancy %",
}
"""What is shown of each kernel: Nsight Compute's word and ours. Throughputs are shares of the device's peak."""
MICROSECONDS = {
    "ns": 1e-3,
    "us": 1.0,
    "ms": 1e3,
    "s": 1e6,
    "nsecond": 1e-3,
    "usecond": 1.0,
    "msecond": 1e3,
    "second": 1e6,
}
KERNEL = re.compile(r"  (?P<name>\S.*) \([\d, ]+\)x\([\d, ]+\), Context \d+, .*")
METRIC = re.compile(r"    (?P<name>\S.*?)  +(?P<unit>\S+) +(?P<value>[\d.,]+)\s*")
NSIGHT_FOLDERS = (
    "/opt/nvidia/nsight-compute/*",
    "/usr/local/cuda*/nsight-compute-*",
    "/opt/nvidia/*/*/nsight-compute*",
)


class NotProfiled(Exception):
    """There is no profile; `str(error)` says why, and what to do."""


def chosen_file(only: str | None, base: str) -> str:
    """The slot file to profile: the one that is named, else the only one that differs from `base`. Raises NotProfiled."""
    if only is not None:
        if kind_of_path(only) is None or not (ROOT / only).is_file():
            raise NotProfiled(f"{only} is no slot file here. Name one below engine/, such as engine/attention/sdpa.py.")
        return only
    try:
        changed = [file.path for file in read_working_tree(ROOT, base).files]
    except WorkingTreeError as error:
        raise NotProfiled(str(error)) from None
    if len(changed) != 1:
        what = "No slot file differs" if not changed else f"{len(changed)} slot files differ ({', '.join(changed)})"
        raise NotProfiled(f"{what} from {base}. Name the one to profile by --only PATH.")
    return changed[0]


def chosen_case(cases: list[Case], name: str | None) -> Case:
    """The case of that name, by default the first. Raises NotProfiled."""
    if not cases:
        raise NotProfiled("The header supports none of the slot's cases on this machine.")
    found = [case for case in cases if name in (None, case.name)]
    if not found:
        raise NotProfiled(f"There is no case {name!r}. There are: {', '.join(case.name for case in cases)}.")
    return found[0]


@dataclass
class Profiled:
    """What was found: seconds of each recorded call, the files that were written, and why Nsight Compute counted nothing, where it did not."""

    case: Case
    seconds: list[float]
    files: list[str]
    not_counted: str = ""


def nsight_folder(path: str | None = None, patterns: Sequence[str] = NSIGHT_FOLDERS) -> Path | None:
    """The newest Nsight Compute on this machine: the one that `ncu` on the PATH belongs to, else one in the usual places."""
    on_path = shutil.which("ncu", path=path)
    found = list(Path(on_path).resolve().parents[:3]) if on_path else []
    for pattern in patterns:
        installed = Path("/").glob(pattern.lstrip("/"))
        found += sorted(installed, key=lambda one: [int(part) for part in re.findall(r"\d+", one.name)], reverse=True)
    return next((one for one in found if (one / "target").is_dir() and os.access(one / "ncu", os.X_OK)), None)


def profile(
    made: Workspace, path: str, case_name: str | None, calls: int, into: Path, nsight: Path | None = None
) -> Profiled:
    """Profiles a case of a slot file of this checkout; what it finds lies in `into`. With `nsight`, its folder, one more call is counted in.

    Raises NotProfiled, and what a judged call raises.
    """
    where = machine.environment()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - where.threads))
    kind_name = kind_of_path(path)
    assert kind_name is not None
    tree = made.tree(path)
    judged = subject(SlotFile(path, kind_name, "modified"), Trees(tree, tree))  # type: ignore[arg-type]
    hosts = Hosts(best_level(), where.threads, device=where.device)
    trial = Trial(judged, hosts, Source(os.urandom(32)), where, lambda *_: None)
    trial.deadline = time.monotonic() + STAGE_SECONDS
    try:
        kind = judged.kind
        case = chosen_case(list(kind.cases("performance", judged.header, where)), case_name)
        held = prepared(trial, SteadyHost(trial, judged.head), [case], "performance")[0][case.name]
        if isinstance(held, CallFailed):
            raise held
        held = settled(trial, SteadyHost(trial, judged.head), case, held)
        # That host has done its part, and one that was started ahead would not be profiled.
        hosts.close()
        hosts.profiled_calls = calls
        host = trial.open(judged.head)
        seconds = _called(trial, host, case, held, calls)
        assert isinstance(host.process, HostProcess)
        found = collect(host.process, str(FOLDER), into, max_bytes=MAX_TRACE_BYTES, max_files=8)
        missing = {TRACE, OPERATORS} - set(found.files)
        if missing:
            raise NotProfiled(f"The host left no {' and no '.join(sorted(missing))}.")
        profiled = Profiled(case, seconds, found.files)
        if nsight is not None:
            hosts.close()
            hosts.counted_by = nsight
            _count(trial, profiled, held, into)
        return profiled
    finally:
        hosts.close()


def _called(trial: Trial, host: HostClient, case: Case, held: HeldSet, calls: int) -> list[float]:
    """Makes the calls that warm up, and `calls` more: their seconds."""
    host.hold(held)
    seconds = []
    for number in range(WARM_UP_CALLS + calls):
        call = trial.subject.kind.draw(case, held, trial.source.child("profile", case.name, number))
        seconds.append(host.timed(host.ready(call)).seconds)
    return seconds[WARM_UP_CALLS:]


def _count(trial: Trial, profiled: Profiled, held: HeldSet, into: Path) -> None:
    """One call under Nsight Compute. What goes wrong there is told and nothing else: the trace is made."""
    trial.deadline = time.monotonic() + 2 * COUNTING_SECONDS
    try:
        host = trial.open(trial.subject.head)
        host.call_timeout = COUNTING_SECONDS
        _called(trial, host, profiled.case, held, 1)
        host.leave(time.monotonic() + COUNTING_SECONDS)
        assert isinstance(host.process, HostProcess)
        own = into / "counted"
        own.mkdir()
        found = collect(host.process, str(FOLDER), own, max_bytes=MAX_TRACE_BYTES, max_files=8)
        for name in found.files:
            (own / name).rename(into / name)
        profiled.files += found.files
        if missing := {REPORT, WORDS} - set(found.files):
            profiled.not_counted = f"Its {' and '.join(sorted(missing))} could not be taken: {found.refused}"
    except (CallFailed, SandboxError, OSError) as error:
        tail = getattr(error, "tail", "")
        profiled.not_counted = f"{error} {tail}".strip()


@dataclass
class Kernel:
    """Launches of one kernel in Nsight Compute's words, with the median of each figure."""

    name: str
    launches: int
    figures: dict[str, float]


def kernels_of(words: str) -> list[Kernel]:
    """What Nsight Compute told of each kernel (its page "details"), the one that took longest in all first. Lines that are none of its are passed over."""
    told: dict[str, list[dict[str, float]]] = {}
    figures: dict[str, float] = {}
    for line in words.splitlines():
        if header := KERNEL.fullmatch(line):
            figures = {}
            told.setdefault(header["name"], []).append(figures)
        elif (metric := METRIC.fullmatch(line)) and metric["name"] in FIGURES:
            unit, value = metric["unit"], float(metric["value"].replace(",", ""))
            figures[metric["name"]] = value * MICROSECONDS.get(unit, 1.0)
    found = []
    for name, launches in told.items():
        medians = {
            figure: statistics.median(known)
            for figure in FIGURES
            if (known := [one[figure] for one in launches if figure in one])
        }
        found.append(Kernel(name, len(launches), medians))
    return sorted(found, key=lambda kernel: -kernel.launches * kernel.figures.get("Duration", 0.0))


def kernel_table(kernels: list[Kernel]) -> Table:
    """The kernels with their launches and figures."""
    table = Table(
        title=f"The first kernels of a call, {KERNELS} launches at most, by Nsight Compute", title_justify="left"
    )
    table.add_column("kernel", overflow="fold")
    table.add_column("launches", justify="right")
    for heading in FIGURES.values():
        table.add_column(heading, justify="right")
    for kernel in kernels:
        cells = (f"{kernel.figures[name]:.1f}" if name in kernel.figures else "" for name in FIGURES)
        table.add_row(Text(textwrap.shorten(kernel.name, 120, placeholder="…")), str(kernel.launches), *cells)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit status 0: a trace was written; 1: the code failed; 2: it could not be profiled."""
    parser = argparse.ArgumentParser(prog="swapbench profile", description=(__doc__ or "").split(":", 1)[1].strip())
    parser.add_argument("--only", metavar="PATH", help="slot file to profile (default: the one that you changed)")
    parser.add_argument("--base", default="HEAD", metavar="REF", help="commit to compare with (default: HEAD)")
    parser.add_argument("--case", metavar="NAME", help="case of the performance suite (default: the first)")
    parser.add_argument("--calls", type=int, default=20, help="calls to record (default: 20)")
    parser.add_argument(
        "--out", type=Path, default=Path("profile.json"), help="Chrome trace to write (default: profile.json)"
    )
    parser.add_argument(
        "--no-nsight", action="store_true", help="on a GPU, do without Nsight Compute where it is installed"
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        path = chosen_file(options.only, options.base)
        nsight = None if options.no_nsight or machine.environment().device == "cpu" else nsight_folder()
        with workspace() as made, tempfile.TemporaryDirectory(prefix="swapbench-") as folder:
            into = Path(folder)
            found = profile(made, path, options.case, max(1, options.calls), into, nsight)
            table = wire.printable((into / OPERATORS).read_text(errors="replace"), 40_000)
            options.out.write_bytes((into / TRACE).read_bytes())
            report = options.out.with_suffix(".ncu-rep")
            counted = ""
            if not found.not_counted and REPORT in found.files:
                report.write_bytes((into / REPORT).read_bytes())
                counted = wire.printable((into / WORDS).read_text(errors="replace"), 1_000_000)
    except (NotProfiled, NoLevel, SandboxError) as error:
        console.print(Text(f"swapbench profile: {error}", style="red"))
        return 2
    except (CallFailed, HeaderError, Wrong) as error:
        console.print(Text(f"{path}: {error}", style="red"))
        return 1
    console.print(Text(table), soft_wrap=True)
    if kernels := kernels_of(counted):
        console.print(kernel_table(kernels))
    median = sorted(found.seconds)[len(found.seconds) // 2]
    told = [
        f"{path}, {found.case.name}: {median * 1e3:.3f} ms a call while profiled, {len(found.seconds)} calls.",
        f"{options.out} opens in https://ui.perfetto.dev or chrome://tracing.",
    ]
    if counted:
        told.append(f"{report} opens in Nsight Compute (ncu-ui).")
    if found.not_counted:
        told.append(f"Nsight Compute counted nothing: {found.not_counted}")
    console.print(Text(" ".join(told)), soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
