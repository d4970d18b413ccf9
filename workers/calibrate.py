"""`swapbench calibrate`: learns what this machine class can tell apart, from pairs in which both sides are the same code.

Three things go into a bank, a file of JSON lines that later runs add to: A/A pairs of a slot's default against itself, measured
as an attempt measures them; pairs of it against a copy that was slowed on purpose; and whole attempts whose head differs from
base by a comment. From the bank comes calibration/MACHINE-CLASS.MAKE.json, which the rule of every later attempt
on such a machine reads.
"""

import argparse
import ast
import os
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from engine.generate import EngineError
from engine.loader import LoadError
from engine.slots.header import FOLDERS
from engine.slots.kind import kind_named
from engine.slots.registry import implementations
from engine.slots.source import Source
from workers import calibrations, steps
from workers.attempt import make_attempt
from workers.calibrations import (
    Banked,
    BankedAttempt,
    BankedPair,
    Calibration,
    CaseCalibration,
    Planted,
    Share,
    SlotCalibration,
    StepShares,
    WholeAttempts,
)
from workers.checkout import Trees
from workers.judge import machine
from workers.judge.accelerator import count as accelerators
from workers.judge.hosts import Hosts, keep_to_share
from workers.judge.speed import MeasuringFailed, UnfitMachine, measure_pairs, rule_for
from workers.judge.trial import Subject, Trial, published, subject
from workers.protocol import Job, PairRecord, Policy, SlotFile, encode
from workers.sandbox import best_level
from workers.sole_use import Occupied, sole_use
from workers.statistics import (
    LogRatios,
    Rate,
    Rule,
    detectable_effect,
    estimate,
    false_gate_rate,
    floor_from_aa,
    loss_power,
    percent,
    resolvable_difference,
    robust_deviation,
)
from workers.suites.version import ROOT, suite_version

PAIRS_PER_ATTEMPT = 32
"""Pairs that are measured under one seed, as one attempt at most would."""
PAIR_SECONDS_AT_MOST = 180.0
OCCUPIED_SECONDS = 60.0
"""How long another attempt on the same accelerator is waited for."""
OTHERS_AT_WORK = f"Another attempt is using this accelerator; waiting up to {OCCUPIED_SECONDS:.0f} s."
FOR_A_FLOOR = 12
SPINNING = {"attention": "forward", "quantization": "linear", "normalization": "forward", "activation": "forward"}
"""The method of a kind that a slowed copy spins in."""


class CalibrationFailed(Exception):
    """Something stood in the way; `str(error)` says what, and what to do."""


@dataclass(frozen=True)
class Bank:
    """A file of JSON lines. A line that a killed run left half written is left out."""

    path: Path

    def add(self, entry: Banked) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(entry) + b"\n")

    def __iter__(self) -> Iterator[Banked]:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    yield msgspec.json.decode(line, type=Banked)
                except msgspec.MsgspecError:
                    continue

    def pairs(
        self, machine_class: str, make: str, slot: str, planted: float = 0.0, workload: str | None = None
    ) -> list[BankedPair]:
        """The pairs of one slot over these cases, or those of the latest one, in the order in which they were measured."""

        def cases(entry: BankedPair) -> tuple[str, frozenset[str]]:
            return entry.workload, frozenset(entry.pair.base)

        mine = self._of(machine_class, make, slot)
        found = [entry for entry in mine if isinstance(entry, BankedPair) and entry.planted == planted]
        if workload is not None:
            return [entry for entry in found if entry.workload == workload]
        return [entry for entry in found if cases(entry) == cases(found[-1])]

    def attempts(self, machine_class: str, make: str, slot: str, workload: str) -> list[BankedAttempt]:
        """The whole attempts of one slot over these cases, or over some that were not written down."""
        mine = self._of(machine_class, make, slot)
        return [entry for entry in mine if isinstance(entry, BankedAttempt) and entry.workload in ("", workload)]

    def _of(self, *key: str) -> Iterator[Banked]:
        return (entry for entry in self if (entry.machine_class, entry.make, entry.slot) == key)


# -- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """A repository of the engine as it lies here, with a tree for a host, below a temporary folder; and the accelerator that is measured on."""

    folder: Path
    accelerator: int = 0

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def default(self, slot: str) -> str:
        """The path of the slot's default implementation."""
        files = implementations(self.repository / "engine", slot)
        return str(files[kind_named(slot).default].relative_to(self.repository))

    def tree(self, path: str, source: str | None = None) -> Path:
        """A copy of the engine, with `source` in place of one file."""
        # A host can read the folder's name, so it says nothing (see workers.checkout).
        tree = self.folder / secrets.token_hex(8)
        shutil.copytree(self.repository / "engine", tree / "engine")
        if source is not None:
            (tree / path).write_text(source)
        return tree

    def commit(self, message: str) -> str:
        """The SHA of a commit of all that lies in the repository."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message", message)
        return self._git("rev-parse", "HEAD")

    def _git(self, *arguments: str) -> str:
        person = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "swapbench calibrate"), ("EMAIL", "calibrate@localhost"))
        }
        quiet = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(
            ["git", "-C", str(self.repository), *arguments],
            capture_output=True,
            text=True,
            env=os.environ | person | quiet,
            check=False,
        )
        if done.returncode:
            raise CalibrationFailed(f"git {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout.strip()


@contextmanager
def workspace(accelerator: int = 0) -> Iterator[Workspace]:
    """A workspace that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="swapbench-"))
    # The unprivileged user of a host must be able to enter what is bound for it.
    folder.chmod(0o755)
    try:
        made = Workspace(folder, accelerator)
        leave = shutil.ignore_patterns("__pycache__", "checkpoints", "*.partial")
        shutil.copytree(ROOT / "engine", made.repository / "engine", ignore=leave)
        made._git("init", "--quiet", "--initial-branch=main")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


SPIN = """
def _slowed(method, share={share!r}):
    import functools
    import time

    @functools.wraps(method)  # it takes what the method takes, `out` among it
    def spinning(*arguments, **keywords):
        began = time.perf_counter()
        result = method(*arguments, **keywords)
        end = time.perf_counter() + (time.perf_counter() - began) * share
        while time.perf_counter() < end:
            pass
        return result

    return spinning
"""
# On the device, where a call's work is a few microseconds within a recorded step: what is owed is slept off in naps, since a kernel of its
# own for each call would take longer than what is planted.
SLEEP = """
def _slowed(method, share={share!r}, nap=5e-6, launching=1.5e-6, calls=8, rounds=5):
    import functools
    import torch

    taken, rate, owed = {{}}, [0.0], [0.0]

    def seconds(work):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def of_one_call(arguments, keywords):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                method(*arguments, **keywords)
        graph.replay()
        return sorted(seconds(graph.replay) for _ in range(rounds))[rounds // 2] / calls

    @functools.wraps(method)
    def sleeping(*arguments, **keywords):
        key = tuple(tuple(item.shape) for item in arguments if isinstance(item, torch.Tensor))
        if key not in taken and not torch.cuda.is_current_stream_capturing():
            cycles = 10_000_000
            torch.cuda._sleep(cycles)
            rate[0] = cycles / seconds(lambda: torch.cuda._sleep(cycles))
            method(*arguments, **keywords)
            taken[key] = of_one_call(arguments, keywords)
        result = method(*arguments, **keywords)
        owed[0] += share * taken.get(key, 0.0)
        if owed[0] >= nap:
            torch.cuda._sleep(int((owed[0] - launching) * rate[0]))
            owed[0] = 0.0
        return result

    return sleeping
"""


def slowed(source: str, slot: str, share: float, device: str = "cpu") -> str:
    """The slot file with a registered class that, after each call, spins (on an accelerator: sleeps there) for `share` of the time that the call took.

    Raises CalibrationFailed where the file registers no class.
    """
    method = SPINNING.get(slot)
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.decorator_list]
    if method is None or not classes:
        raise CalibrationFailed(f"A {slot} cannot be slowed: it registers no class with a method to spin in.")
    name = classes[-1].name
    waste = (SLEEP if device == "cuda" else SPIN).format(share=share)
    return f"{source}\n{waste}\n\n{name}.{method} = _slowed({name}.{method})\n"


def bank_pairs(made: Workspace, bank: Bank, slot: str, planted: float, wanted: int, tell: "Tell") -> None:
    """Measures pairs until the bank has `wanted` of them."""
    where, make = machine.environment(), calibrations.make(machine.facts())
    path = made.default(slot)
    source = (made.repository / path).read_text()
    base = made.tree(path, slowed(source, slot, planted, where.device) if planted else None)
    trees = Trees(base, made.tree(path))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - where.threads))
    judged = subject(SlotFile(path, slot, "modified"), trees)  # type: ignore[arg-type]
    workload = published(judged, where)
    tell.total(wanted)
    while (have := len(bank.pairs(where.machine_class, make, slot, planted, workload))) < wanted:
        tell.done(have)
        # As an attempt does: whoever measures beside another one measures both wrong.
        with sole_use(made.accelerator, OCCUPIED_SECONDS, tell.waiting):
            for record, seconds in _some_pairs(made, judged, min(PAIRS_PER_ATTEMPT, wanted - have)):
                bank.add(
                    BankedPair(
                        slot=slot,
                        implementation=judged.header.name,
                        planted=planted,
                        pair=record,
                        seconds=seconds,
                        machine_class=where.machine_class,
                        suite_version=suite_version(),
                        at=time.time(),
                        make=make,
                        workload=workload,
                    )
                )
                have += 1
                tell.done(have)
    tell.done(wanted)


def _some_pairs(made: Workspace, judged: Subject, count: int) -> Iterator[tuple[PairRecord, float]]:
    where = machine.environment()
    hosts = Hosts(best_level(), where.threads, slot=made.accelerator, device=where.device)
    trial = Trial(judged, hosts, Source(os.urandom(32)), where, lambda *_: None)
    trial.deadline = time.monotonic() + PAIR_SECONDS_AT_MOST * (count + 1)
    try:
        pairs = measure_pairs(trial, Policy(), count)
        began = time.monotonic()
        for record in pairs:
            # The samples would make a long bank large, and only medians decide.
            slim = msgspec.structs.replace(record, base_samples={}, head_samples={})
            yield slim, time.monotonic() - began
            began = time.monotonic()
    finally:
        hosts.close()


def bank_attempts(
    made: Workspace, bank: Bank, slot: str, wanted: int, tell: "Tell", outcomes: Path | None = None
) -> None:
    """Makes whole attempts on identical code until the bank has `wanted` of them; `outcomes` is a folder that keeps theirs."""
    where, make = machine.environment(), calibrations.make(machine.facts())
    path = made.default(slot)
    file = made.repository / path
    source = file.read_text()
    trees = Trees(made.repository, made.repository)
    workload = published(subject(SlotFile(path, slot, "modified"), trees), where)  # type: ignore[arg-type]
    tell.total(wanted)
    have = len(bank.attempts(where.machine_class, make, slot, workload))
    tell.done(have)
    while have < wanted:
        base = made.commit("Base")
        file.write_text(f"{source}# Nothing else differs ({secrets.token_hex(4)}).\n")
        head = made.commit("Head")
        file.write_text(source)
        job = Job(
            attempt=f"calibrate-{secrets.token_hex(4)}",
            token=secrets.token_hex(32),
            repository=str(made.repository),
            base_sha=base,
            head_sha=head,
            head_ref="HEAD",
            files=(SlotFile(path, slot, "modified"),),  # type: ignore[arg-type]
            machine_class=where.machine_class,
        )
        began = time.monotonic()
        outcome = make_attempt(job, lambda _: None, made.repository / ".git", slot=made.accelerator)
        seconds = time.monotonic() - began
        decision = outcome.implementations[0].speed if outcome.implementations else "not_measured"
        name = outcome.implementations[0].name if outcome.implementations else ""
        bank.add(
            BankedAttempt(
                slot=slot,
                implementation=name,
                status=outcome.status,
                decision=decision,
                seconds=seconds,
                machine_class=where.machine_class,
                suite_version=suite_version(),
                at=time.time(),
                make=make,
                workload=workload,
            )
        )
        if outcomes is not None:
            # The repository lay in a temporary folder; nothing can be fetched from it any more.
            kept = msgspec.structs.replace(job, repository="a copy of this engine", token="0" * 64)
            (outcomes / f"{slot}-{job.attempt}.json").write_text(encode(msgspec.structs.replace(outcome, job=kept)))
        have += 1
        tell.done(have)


# -- what is learned --------------------------------------------------------------------------------------------------


def learn(
    bank: Bank,
    machine_class: str,
    make: str,
    slot: str,
    plants: Sequence[float],
    device: Literal["cpu", "cuda"],
    resamples: int,
) -> SlotCalibration:
    """What the bank says of a slot. Raises CalibrationFailed where it holds too few pairs."""
    entries = bank.pairs(machine_class, make, slot)
    if len(entries) < FOR_A_FLOOR:
        raise CalibrationFailed(
            f"The bank has {len(entries)} pairs of {slot} on {machine_class}; at least {FOR_A_FLOOR} are needed."
        )
    logs = LogRatios.of([entry.pair for entry in entries])
    cases = {
        name: CaseCalibration(found.floor, found.bias, found.spread) for name, found in floor_from_aa(logs).items()
    }
    gate = logs.gate
    found = SlotCalibration(
        implementation=entries[-1].implementation,
        pairs=len(entries),
        repeated=sum(len(entry.pair.repeated) for entry in entries),
        cases=cases,
        bias=estimate(gate),
        spread=robust_deviation(gate),
        equivalence=0.0,
        false_gates=false_gate_rate(Rule(), logs, 1),
        effect_at_90=None,
        seconds_per_pair=statistics.median([entry.seconds for entry in entries if entry.seconds] or [0.0]),
        suite_versions=len({entry.suite_version for entry in entries}),
        workload=entries[-1].workload,
        attempts=_summary(bank.attempts(machine_class, make, slot, entries[-1].workload)),
    )
    rule = rule_for(Policy(), device, found)
    resolved = resolvable_difference(rule, logs, attempts=max(50, resamples // 4))
    rule = msgspec.structs.replace(rule, equivalence=resolved)
    return msgspec.structs.replace(
        found,
        equivalence=resolved,
        false_gates=false_gate_rate(rule, logs, resamples),
        false_losses=loss_power(rule, logs, 0.0, resamples),
        effect_at_90=detectable_effect(rule, logs, attempts=max(50, resamples // 8)),
        planted=[
            _planted(rule, share, slowed_pairs, max(50, resamples // 4))
            for share in plants
            if len(slowed_pairs := bank.pairs(machine_class, make, slot, share)) >= rule.looks[0]
        ],
    )


def _planted(rule: Rule, share: float, entries: list[BankedPair], resamples: int) -> Planted:
    logs = LogRatios.of([entry.pair for entry in entries])
    turned = LogRatios(logs.cases, -logs.values)
    return Planted(
        share=share,
        pairs=len(entries),
        measured=estimate(logs.gate),
        gates=false_gate_rate(rule, logs, resamples),
        slower=loss_power(rule, turned, 0.0, resamples),
    )


def _summary(attempts: list[BankedAttempt]) -> WholeAttempts | None:
    if not attempts:
        return None
    return WholeAttempts(
        total=len(attempts),
        gated=sum(entry.decision == "faster" for entry in attempts),
        failed=sum(entry.status not in ("passed", "inconclusive") for entry in attempts),
        decisions=dict(Counter(f"{entry.status}, {entry.decision}" for entry in attempts)),
        median_seconds=statistics.median(entry.seconds for entry in attempts),
    )


# -- what is shown ----------------------------------------------------------------------------------------------------


class Tell:
    """One line of progress."""

    def __init__(self, progress: Progress, sentence: str) -> None:
        self.progress = progress
        self.task = progress.add_task(sentence, total=None)

    def total(self, count: int) -> None:
        self.progress.update(self.task, total=count)

    def done(self, count: int) -> None:
        self.progress.update(self.task, completed=count)

    def waiting(self) -> None:
        """Another attempt holds the accelerator: a bar that stands still says nothing."""
        self.progress.console.print(OTHERS_AT_WORK)


def markdown(found: Calibration) -> str:
    """The calibration as tables for a person."""
    facts = found.environment
    what = facts.get("accelerator") or facts.get("processor", "")
    lines = [
        f"# {found.machine_class}",
        "",
        f"{what}, {facts.get('cores', 0):.0f} cores, torch {facts.get('torch')}, measured {found.measured_on}. "
        "`swapbench calibrate` makes these tables; fractions are of speed, intervals 95 %.",
        "",
        "| slot | pairs | a pair's spread | bias | false gates (interval) | called slower (interval) | gates 90 % of | resolves | whole attempts | seconds a pair |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, slot in found.slots.items():
        whole = slot.attempts
        attempts = f"{whole.gated} of {whole.total} gated, {whole.failed} failed" if whole else "none"
        effect = percent(slot.effect_at_90) if slot.effect_at_90 is not None else "beyond 50 %"
        slower = _rate(slot.false_losses) if slot.false_losses else "not known"
        lines.append(
            f"| {name} | {_pairs(slot)} | {percent(slot.spread, 2)} | {slot.bias} | {_rate(slot.false_gates)} of {slot.false_gates.total} "
            f"| {slower} | {effect} | {percent(slot.equivalence)} | {attempts} | {slot.seconds_per_pair:.1f} |"
        )
    if found.steps:
        lines += [
            "",
            "What modules take of whole steps of a model: how much less time a step takes without one (`--steps`; 95 %). Each is of a step with that "
            "module in its slot, so that they may add up to more than all.",
            "",
            "| step | ms | of which takes |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {step.step} | {step.milliseconds:.1f} | {_shares(step)} |" for step in found.steps]
    for name, slot in found.slots.items():
        lines += ["", f"## {name}", "", "| case | floor | bias | spread |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {case} | {percent(item.floor)} | {item.bias} | {percent(item.spread, 2)} |"
            for case, item in slot.cases.items()
        ]
        if slot.planted:
            lines += [
                "",
                "| planted | pairs | measured | found faster | found slower |",
                "| --- | --- | --- | --- | --- |",
            ]
            lines += [
                f"| {percent(item.share)} | {item.pairs} | {item.measured} | {percent(item.gates.rate)} | {percent(item.slower.rate)} |"
                for item in slot.planted
            ]
    return "\n".join(lines) + "\n"


def _shares(step: StepShares) -> str:
    def interval(share: Share) -> str:
        return f"{percent(share.share)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"

    return ", ".join(
        f"{slot} `{name}` {interval(share)}" for slot, of in step.shares.items() for name, share in of.items()
    )


def _rate(rate: Rate) -> str:
    return f"{percent(rate.rate, 2)} [{percent(rate.low, 2)}, {percent(rate.high, 2)}]"


def _pairs(slot: SlotCalibration) -> str:
    return f"{slot.pairs}, by {slot.suite_versions} versions" if slot.suite_versions > 1 else str(slot.pairs)


def table(found: Calibration) -> Table:
    """The calibration for a terminal."""
    shown = Table(title=f"{found.machine_class}: what it can tell apart", title_justify="left")
    for heading in (
        "slot",
        "pairs",
        "spread",
        "bias",
        "false gates",
        "called slower",
        "gates 90 % of",
        "resolves",
        "s a pair",
    ):
        shown.add_column(heading, justify="left" if heading == "slot" else "right")
    for name, slot in found.slots.items():
        shown.add_row(
            name,
            str(slot.pairs),
            percent(slot.spread, 2),
            str(slot.bias),
            _rate(slot.false_gates),
            _rate(slot.false_losses) if slot.false_losses else "",
            percent(slot.effect_at_90) if slot.effect_at_90 is not None else "> 50 %",
            percent(slot.equivalence),
            f"{slot.seconds_per_pair:.1f}",
        )
    return shown


def write(found: Calibration, folder: Path) -> Path:
    """Writes MACHINE-CLASS.MAKE.json and .md; returns the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    # With a dot in it, the name is more than a stem.
    path = folder / f"{calibrations.file_name(found.machine_class, found.environment)}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(markdown(found))
    return path


def calibrate(
    slots: Iterable[str],
    bank: Bank,
    folder: Path,
    console: Console,
    *,
    pairs: int,
    attempts: int,
    plants: Sequence[float],
    planted_pairs: int,
    resamples: int,
    accelerator: int = 0,
    outcomes: Path | None = None,
) -> Calibration:
    """Fills the bank, learns from it and writes the calibration. What was measured stays where this is interrupted."""
    where = machine.environment()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    facts = machine.facts()
    before = calibrations.of_machine(where.machine_class, facts, folder)
    learned = dict(before.slots) if before is not None else {}
    known = before.steps if before is not None else []
    with workspace(accelerator) as made, Progress(*columns, console=console) as progress:
        for slot in slots:
            bank_pairs(made, bank, slot, 0.0, pairs, Tell(progress, f"{slot}: pairs of the same code"))
            for share in plants:
                bank_pairs(
                    made, bank, slot, share, planted_pairs, Tell(progress, f"{slot}: slowed by {percent(share)}")
                )
            if attempts:
                bank_attempts(made, bank, slot, attempts, Tell(progress, f"{slot}: whole attempts"), outcomes)
            learned[slot] = learn(
                bank, where.machine_class, calibrations.make(facts), slot, plants, where.device, resamples
            )
    found = Calibration(
        where.machine_class, datetime.now(UTC).date().isoformat(), facts, dict(sorted(learned.items())), known
    )
    write(found, folder)
    return found


def calibrate_steps(folder: Path, console: Console, accelerator: int = 0) -> Calibration:
    """Measures what each slot takes of whole steps of a model and adds it to the calibration in `folder`. Raises CalibrationFailed."""
    where, facts = machine.environment(), machine.facts()
    found = calibrations.of_machine(where.machine_class, facts, folder)
    today = datetime.now(UTC).date().isoformat()
    measured = []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn())
    waiting = partial(console.print, OTHERS_AT_WORK)
    with Progress(*columns, console=console) as progress, sole_use(accelerator, OCCUPIED_SECONDS, waiting):
        for step in steps.STEPS[where.device]:
            tell = Tell(progress, step.name)
            tell.total(steps.WARM_UPS + steps.ROUNDS)
            try:
                measured.append(steps.shares_of(step, steps.MODELS[where.device], where.device, say=tell.done))
            except (EngineError, LoadError, torch.OutOfMemoryError) as error:
                raise CalibrationFailed(f"The model of {step.name!r} does not run here: {error}") from None
    found = found or Calibration(where.machine_class, today, facts, {})
    found = msgspec.structs.replace(found, steps=measured)
    write(found, folder)
    return found


def chosen(wanted: int | None, visible: str, shown: int) -> int:
    """The accelerator to measure on, of as many as the machine shows; `visible`: what CUDA_VISIBLE_DEVICES says. Raises ValueError."""
    if wanted is None:
        return int(visible) if visible.isdigit() else 0
    if visible and visible != str(wanted):
        raise ValueError(f"--accelerator {wanted}: CUDA_VISIBLE_DEVICES is {visible!r}. Give one of the two.")
    if not 0 <= wanted < max(1, shown):
        there = f"0 to {shown - 1}" if shown > 1 else "0 alone" if shown else "none"
        raise ValueError(f"--accelerator {wanted}: of accelerators this machine shows {there}.")
    return wanted


def _why_senseless(options: argparse.Namespace) -> str:
    """What is wrong with the command's options, as a sentence, before hours are spent; empty where nothing is."""
    for name in ("pairs", "attempts", "planted_pairs"):
        if getattr(options, name) < 0:
            return f"--{name.replace('_', '-')} {getattr(options, name)}: it must be none or more."
    if options.resamples < 1:
        return f"--resamples {options.resamples}: it must be at least 1."
    for share in options.plant or ():
        if not 0.0 < share < 1.0:
            return f"--plant {share}: a share lies between 0 and 1, as 0.05 does."
    for name, folder in (("out", options.out), ("bank", options.bank.parent)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return f"--{name} {getattr(options, name)}: {folder} cannot be written to: {error.strerror}."
    bank = options.bank
    if bank.exists():
        if not bank.is_file():
            return f"--bank {bank}: this is no file."
        if bank.stat().st_size and next(iter(Bank(bank)), None) is None:
            return f"--bank {bank}: this is no bank, and is left as it is. Give one that `swapbench calibrate` wrote, or a new name."
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Exit status 0: a calibration was written; 2: it could not be made."""
    parser = argparse.ArgumentParser(prog="swapbench calibrate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--slot", action="append", choices=sorted(SPINNING), help="only this slot; may be repeated")
    parser.add_argument(
        "--pairs", type=int, default=120, help="A/A pairs to have in the bank for each slot (default: 120)"
    )
    parser.add_argument("--attempts", type=int, default=8, help="whole attempts to have for each slot (default: 8)")
    parser.add_argument(
        "--plant",
        action="append",
        type=float,
        metavar="SHARE",
        help="slow one side by this share, e.g. 0.05; may be repeated",
    )
    parser.add_argument("--planted-pairs", type=int, default=32, help="pairs for each planted slow-down (default: 32)")
    parser.add_argument("--resamples", type=int, default=2000, help="attempts resampled from the bank (default: 2000)")
    parser.add_argument(
        "--bank", type=Path, default=ROOT / "var" / "calibration.jsonl", help="file that pairs are added to"
    )
    parser.add_argument(
        "--out", type=Path, default=calibrations.folder(), help="folder for the result (default: calibration/)"
    )
    parser.add_argument(
        "--accelerator",
        type=int,
        metavar="N",
        help="which one to measure on (default: that of CUDA_VISIBLE_DEVICES, else 0)",
    )
    parser.add_argument(
        "--steps",
        action="store_true",
        help="measure only what each slot takes of whole steps of a model, which tells later attempts what a model gains",
    )
    parser.add_argument("--outcomes", type=Path, metavar="FOLDER", help="keep the outcomes of whole attempts there")
    options = parser.parse_args(arguments)
    if sentence := _why_senseless(options):
        parser.error(sentence)
    try:
        accelerator = chosen(options.accelerator, os.environ.get("CUDA_VISIBLE_DEVICES", ""), accelerators())
        if options.outcomes is not None:
            options.outcomes.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--outcomes {options.outcomes}: {error.strerror}.")
    if accelerators():
        # As a worker does, before CUDA looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(accelerator)
        keep_to_share(accelerator)
    console = Console()
    slots = options.slot or [name for name in FOLDERS if name in SPINNING]
    try:
        if options.steps:
            found = calibrate_steps(options.out, console, accelerator)
        else:
            found = calibrate(
                slots,
                Bank(options.bank),
                options.out,
                console,
                pairs=options.pairs,
                attempts=options.attempts,
                plants=tuple(options.plant or ()),
                planted_pairs=options.planted_pairs,
                resamples=options.resamples,
                accelerator=accelerator,
                outcomes=options.outcomes,
            )
    except (CalibrationFailed, MeasuringFailed, Occupied, UnfitMachine, calibrations.CalibrationError) as error:
        console.print(f"swapbench calibrate: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        kept = f"What was measured is in {options.bank}; the same command goes on from there."
        console.print(f"\nStopped. {'Nothing was written.' if options.steps else kept}")
        return 130
    if options.steps:
        for step in found.steps:
            console.print(f"{step.step}: {step.milliseconds:.1f} ms; {_shares(step)}", markup=False)
    else:
        console.print(table(found))
    for name, slot in found.slots.items():
        if slot.suite_versions > 1:
            console.print(f"{name}: its pairs were measured by {slot.suite_versions} versions of the suites.")
    written = options.out / calibrations.file_name(found.machine_class, found.environment)
    console.print(f"Written to {written}.json and .md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
