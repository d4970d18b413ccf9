"""`swapbench check | attempt | worker | calibrate | profile | doctor`: what contributors and operators run."""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from workers import protocol
from workers.protocol import SUITES, ImplementationOutcome, Job, Outcome, Policy, Stage, Status
from workers.workingtree import WorkingTreeError, misplaced, read_working_tree

if TYPE_CHECKING:
    from rich.console import RenderableType

PASSED, NOT_PASSED, COULD_NOT_JUDGE = 0, 1, 2
OURS: tuple[Status, ...] = ("timed_out_infrastructure", "invalid_environment")
COLOURS: dict[str, str] = {"passed": "green", "failed": "red", "tampered": "bold red", "impossible": "bold red"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="swapbench", description="Judge, run and inspect modules of the reference engine."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="judge the slot files that you changed, as a worker would")
    check.add_argument("--base", default="HEAD", metavar="REF", help="commit to compare with (default: HEAD)")
    check.add_argument("--suite", action="append", choices=SUITES, help="run only this suite; may be repeated")
    check.add_argument("--only", action="append", metavar="PATH", help="judge only this slot file; may be repeated")
    check.add_argument(
        "--seed", type=_seed, metavar="HEX", help="draw the inputs of an attempt whose seed was published"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write the outcome as JSON")
    check.add_argument(
        "--no-sandbox", action="store_true", help="run your own code without a sandbox, on your own machine only"
    )
    attempt = commands.add_parser("attempt", help="make one attempt from a job file", add_help=False)
    attempt.add_argument("rest", nargs=argparse.REMAINDER)
    worker = commands.add_parser("worker", help="start the Celery worker of one accelerator")
    worker.add_argument("--accelerator", type=int, default=0, help="number of the accelerator (default: 0)")
    worker.add_argument("--machine-class", help="queue to take jobs from (default: what this machine is)")
    profile_ = commands.add_parser("profile", help="see where the time of one case goes", add_help=False)
    profile_.add_argument("rest", nargs=argparse.REMAINDER)
    calibrate = commands.add_parser("calibrate", help="learn what this machine can tell apart", add_help=False)
    calibrate.add_argument("rest", nargs=argparse.REMAINDER)
    commands.add_parser("doctor", help="say what this machine has and lacks, and how to mend it")
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["attempt"]:
        from workers.attempt import main as make

        return make(given[1:])
    if given[:1] == ["profile"]:
        from workers.profile import main as profile

        return profile(given[1:])
    if given[:1] == ["calibrate"]:
        from workers.calibrate import main as learn

        return learn(given[1:])
    options = parser.parse_args(given)
    console = Console(stderr=False)
    try:
        if options.command == "check":
            return _check(options, console)
        if options.command == "worker":
            return _worker(options.accelerator, options.machine_class)
        return _doctor(console)
    except KeyboardInterrupt:
        console.print("\nStopped.")
        return 130


def _check(options: argparse.Namespace, console: Console) -> int:
    if options.json and (sentence := why_not_written(options.json)):
        console.print(Text(f"swapbench check: {sentence}", style="red"))
        return COULD_NOT_JUDGE
    try:
        tree = read_working_tree(Path.cwd(), options.base, options.only)
    except WorkingTreeError as error:
        console.print(Text(f"swapbench check: {error}", style="red"))
        return COULD_NOT_JUDGE
    if not tree.files:
        where = "in a folder of slots, such as engine/activation/"
        name = "its name has only a-z, 0-9 and _, a letter first, and ends in .py"
        if lost := misplaced(Path.cwd(), options.base):
            sentence = f"{lost[0]} is no slot file where it is: it must lie {where}, and {name}."
        else:
            sentence = f"No slot file differs from {options.base}. Change or add one {where}, then check again; {name}."
            if options.base == "HEAD":
                sentence += " What is committed already is found with --base, for example --base origin/main."
        console.print(sentence, markup=False)
        return COULD_NOT_JUDGE
    from workers.attempt import make_attempt
    from workers.judge.machine import machine_class

    levels = ("full", "rlimits", "user", "none") if options.no_sandbox else Policy().isolation_levels
    job = Job(
        attempt=f"check-{secrets.token_hex(4)}",
        token=secrets.token_hex(32),
        repository=str(tree.git_dir),
        base_sha=tree.base_sha,
        head_sha=tree.head_sha,
        head_ref="HEAD",
        files=tree.files,
        machine_class=machine_class(),
        suites=tuple(suite for suite in SUITES if not options.suite or suite in options.suite),
        policy=Policy(isolation_levels=levels),
    )
    for file in tree.files:
        console.print(f"[bold]{file.status}[/] {file.path}")
    if options.no_sandbox:
        console.print("[yellow]Without a sandbox: your code runs with your own rights.[/]")
    began = time.monotonic()
    with Stages(console) as stages:
        outcome = make_attempt(job, stages.report, tree.git_dir, unconfined=options.no_sandbox, seed=options.seed)
    show(console, outcome)
    console.print(f"{time.monotonic() - began:.1f} s, isolation level {outcome.isolation}")
    if options.json:
        options.json.write_text(protocol.encode_outcome(outcome))
    return exit_status(outcome)


def why_not_written(file: Path) -> str:
    """Why nothing can be written to a file, as a sentence; empty where it can be. A file that was not there is not there afterwards."""
    if not file.parent.is_dir():
        return f"there is no folder {file.parent} to write to."
    there = file.exists()
    try:
        with file.open("ab"):
            pass
        if not there:
            file.unlink()
    except OSError as error:
        return f"{file} cannot be written: {error.strerror}."
    return ""


def _seed(text: str) -> bytes:
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise argparse.ArgumentTypeError("a seed has 64 hex digits")
    return seed


def exit_status(outcome: Outcome) -> int:
    """0 where all passed, 1 where one did not; 2 where one was not judged, for something on our side, or, the others having passed, as it is not for this machine."""
    statuses = [outcome.status, *(item.status for item in outcome.implementations)]
    if any(status in OURS for status in statuses):
        return COULD_NOT_JUDGE
    failed = [item for item in outcome.implementations if item.status != "passed"]
    if failed and all(reason.code == "unsupported" for item in failed for reason in item.reasons):
        return COULD_NOT_JUDGE
    return PASSED if all(status == "passed" for status in statuses) else NOT_PASSED


class Stages:
    """Progress bars, one for each stage that has begun."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim"),
            console=console,
        )
        self.tasks: dict[Stage, int] = {}

    def __enter__(self) -> "Stages":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self.progress.stop()

    def _end(self) -> None:
        """Ends what has begun; what counted nothing was one thing, and is done."""
        for task in self.progress.tasks:
            self.progress.stop_task(task.id)
            if task.total is None:
                self.progress.update(task.id, total=1, completed=1)

    def report(self, news: protocol.Progress) -> None:
        """Takes news of the attempt."""
        if news.stage not in self.tasks:
            self._end()
            self.tasks[news.stage] = self.progress.add_task("", total=None, stage=news.stage)
        self.progress.update(
            self.tasks[news.stage],  # type: ignore[arg-type]
            description=news.sentence[:70],
            completed=news.done,
            total=news.total or None,
        )


def show(console: "Console", outcome: Outcome) -> None:
    """Prints the verdict on each implementation, and what stopped the attempt itself."""
    for item in outcome.implementations:
        console.print(_verdict(item))
        for command in dict.fromkeys(reason.reproduce for reason in item.reasons if reason.reproduce):
            # Not in the table: a command that is cut or broken at the terminal's width cannot be pasted.
            console.print(Text("again:", style="dim"))
            console.print(Text(command), soft_wrap=True)
    for reason in outcome.reasons:
        console.print(Text(reason.sentence, style="red"))


REASONS_SHOWN = 3
"""Of each implementation; what is wrong in one case is mostly wrong in others."""


def _verdict(item: ImplementationOutcome) -> "RenderableType":
    table = Table.grid(padding=(0, 2))
    colour = COLOURS.get(item.status, "yellow")
    title = f"{item.kind} {item.name}" if item.name else item.path
    told = [reason.sentence for reason in item.reasons[:1]]
    summary = "" if item.summary in told else item.summary
    table.add_row(Text(title, style="bold"), Text(item.status.replace("_", " "), style=colour), Text(summary))
    for reason in item.reasons[:REASONS_SHOWN]:
        where = f"{reason.stage or ''}{f', case {reason.case}' if reason.case else ''}"
        table.add_row("", Text(where, style="dim"), Text(reason.sentence))
        if reason.recipe:
            table.add_row("", Text("inputs", style="dim"), Text(reason.recipe))
        if reason.got is not None and reason.expected is not None:
            where = f"at {list(reason.index)} " if reason.index else ""
            table.add_row(
                "", Text("first wrong", style="dim"), Text(f"{where}expected {reason.expected:g}, got {reason.got:g}")
            )
        if reason.next_step:
            table.add_row("", Text("next", style="dim"), Text(reason.next_step))
    if (more := len(item.reasons) - REASONS_SHOWN) > 0:
        table.add_row("", Text("more", style="dim"), Text(f"{more} other reasons; --json FILE writes them all down"))
    for name, value in item.quality.items():
        table.add_row("", Text("quality", style="dim"), Text(f"{name} {value:.5g}"))
    for name, value in item.figures.items():
        table.add_row("", Text("figure", style="dim"), Text(f"{name} {value:.5g}"))
    if item.performance is not None:
        for case in item.performance.cases:
            text = (
                f"{case.case}: {case.base_seconds * 1e3:.3f} → {case.head_seconds * 1e3:.3f} ms, "
                f"{case.speedup.estimate:+.1%} [{case.speedup.low:+.1%}, {case.speedup.high:+.1%}]"
            )
            table.add_row("", Text("speed", style="dim"), Text(text))
        for step in item.performance.steps:
            whole = step.speedup
            text = f"{whole.estimate:+.2%} [{whole.low:+.2%}, {whole.high:+.2%}] for {step.step}, of which {item.performance.against} takes {step.share:.1%}"
            table.add_row("", Text("model", style="dim"), Text(text))
    return table


def _worker(accelerator: int, machine_class: str | None) -> int:
    """Replaces this process by the Celery worker."""
    if machine_class is None:
        import subprocess

        asked = subprocess.run(
            [sys.executable, "-c", "from workers.judge.machine import machine_class; print(machine_class())"],
            capture_output=True,
            text=True,
            check=True,
        )
        machine_class = asked.stdout.strip()
    os.environ["SWAPBENCH_ACCELERATOR"] = str(accelerator)
    os.environ["SWAPBENCH_MACHINE_CLASS"] = machine_class
    queue = protocol.judge_queue(machine_class)
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "workers.app",
        "worker",
        "-Q",
        queue,
        "--pool",
        "solo",
        "-l",
        "warning",
    ]
    os.execv(sys.executable, command)


def _doctor(console: Console) -> int:
    from workers.doctor import checks

    table = Table(title="swapbench doctor", title_justify="left")
    for column in ("", "what", "found", "how to mend"):
        table.add_column(column)
    found = list(checks())
    for item in found:
        mark = Text("ok", style="green") if item.ok else Text("lacks", style="red" if item.needed else "yellow")
        table.add_row(mark, item.name, item.found, "" if item.ok else item.mend)
    console.print(table)
    return PASSED if all(item.ok for item in found if item.needed) else NOT_PASSED


if __name__ == "__main__":
    raise SystemExit(main())
