"""`swapbench profile`: where the time of one case goes, by torch.profiler, in the sandbox in which it would be judged."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from engine.slots.header import HeaderError, kind_of_path
from engine.slots.kind import CallFailed, Case
from engine.slots.source import Source
from workers import wire
from workers.calibrate import Workspace, workspace
from workers.checkout import Trees
from workers.host.profiled import FOLDER, OPERATORS, TRACE, WARM_UP_CALLS
from workers.judge import machine
from workers.judge.hosts import Hosts
from workers.judge.trial import SteadyHost, Trial, Wrong, prepared, settled, subject
from workers.protocol import SlotFile
from workers.sandbox import MIB, HostProcess, NoLevel, SandboxError, best_level, collect
from workers.suites.version import ROOT
from workers.workingtree import WorkingTreeError, read_working_tree

MAX_TRACE_BYTES = 256 * MIB
STAGE_SECONDS = 300.0


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


def profile(
    made: Workspace, path: str, case_name: str | None, calls: int, into: Path
) -> tuple[Case, list[float], list[str]]:
    """Profiles a case of a slot file of this checkout; returns the case, seconds of each call, and what was written to `into`.

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
        host.hold(held)
        seconds = []
        for number in range(WARM_UP_CALLS + calls):
            call = kind.draw(case, held, trial.source.child("profile", case.name, number))
            seconds.append(host.timed(host.ready(call)).seconds)
        assert isinstance(host.process, HostProcess)
        found = collect(host.process, str(FOLDER), into, max_bytes=MAX_TRACE_BYTES, max_files=8)
        missing = {TRACE, OPERATORS} - set(found.files)
        if missing:
            raise NotProfiled(f"The host left no {' and no '.join(sorted(missing))}.")
        return case, seconds[WARM_UP_CALLS:], found.files
    finally:
        hosts.close()


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
    options = parser.parse_args(arguments)
    console = Console()
    try:
        path = chosen_file(options.only, options.base)
        with workspace() as made, tempfile.TemporaryDirectory(prefix="swapbench-") as folder:
            into = Path(folder)
            case, seconds, _ = profile(made, path, options.case, max(1, options.calls), into)
            table = wire.printable((into / OPERATORS).read_text(errors="replace"), 40_000)
            options.out.write_bytes((into / TRACE).read_bytes())
    except (NotProfiled, NoLevel, SandboxError) as error:
        console.print(Text(f"swapbench profile: {error}", style="red"))
        return 2
    except (CallFailed, HeaderError, Wrong) as error:
        console.print(Text(f"{path}: {error}", style="red"))
        return 1
    console.print(Text(table), soft_wrap=True)
    median = sorted(seconds)[len(seconds) // 2]
    console.print(
        f"{path}, {case.name}: {median * 1e3:.3f} ms a call while profiled, {len(seconds)} calls. "
        f"{options.out} opens in https://ui.perfetto.dev or chrome://tracing.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
