"""The performance stage: pairs of fresh processes until the rule of workers.statistics knows enough."""

import dataclasses
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
import torch

from engine.slots.kind import CallFailed
from engine.slots.registry import read_header
from workers import calibrations
from workers.calibrations import SlotCalibration
from workers.judge import machine
from workers.judge.trial import Impossible, StageTimedOut, Trial, Wrong, published, reason_of, recipe_of, status_of
from workers.protocol import CaseSpeed, Interval, PairRecord, Performance, Policy, Reason, Speed, WholeStep
from workers.sandbox import SandboxError
from workers.statistics import (
    TAKING_TURNS,
    Decision,
    Estimate,
    LogRatios,
    Rule,
    Thresholds,
    contended,
    estimate,
    looks_within,
    may_repeat,
    of_whole,
)
from workers.suites.performance.bench import Course, PairBench, SideName
from workers.suites.session import SuiteResult, run_suite

Phase = Literal["stop", "confirm", "same"]

RULE_ARTIFACT = "rule.json"
"""The rule as it was fixed before the first pair: without it nobody could decide again from the pairs."""

# What a machine class can resolve with 24 pairs: the largest difference that "no difference" may leave possible.
EQUIVALENCE = {"cpu": 0.05, "cuda": 0.02}


REFUSED_SECONDS = 1.0
"""Stands on both sides of a published case that the implementation's limits leave out: it counts as neither faster nor slower."""


SHARE_KNOWN = 0.05
"""How wide the interval of a share may be of which something is said, unless the share is larger."""

WORTH_TELLING = 0.5
"""Seconds in a process's first calls below which nothing is said of compiling: memory is touched for the first time, libraries load."""


class UnfitMachine(Exception):
    """The accelerator is shared or held down, so that nothing measured on it says anything; `str(error)` says how it shows."""


class MeasuringFailed(Exception):
    """A pair could not be measured; `str(error)` says why."""


class BudgetEnded(Exception):
    """There is no time for another pair within the stage."""


@dataclass
class SpeedResult:
    """What the stage found: statuses and reasons as of any suite, and the pairs with the decision."""

    result: SuiteResult
    performance: Performance | None = None
    figures: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


def rule_for(
    policy: Policy, device: str, slot: SlotCalibration | None = None, may_lose: Mapping[str, float] | None = None
) -> Rule:
    """The rule of one attempt, fixed before its first pair; with floors, bias and resolution of the machine class where they are known.

    may_lose: by case, what it may lose whatever the machine can tell (see SlotKind.may_lose).
    """
    rule = Rule(
        alpha=policy.alpha,
        looks=looks_within(policy.max_pairs),
        relevance=policy.relevance,
        equivalence=EQUIVALENCE[device],
    )
    floors: dict[str, float] = {}
    if slot is not None:
        floors = calibrations.floors(slot)
        rule = msgspec.structs.replace(rule, equivalence=calibrations.equivalence(slot), bias=calibrations.bias(slot))
    for case, share in (may_lose or {}).items():
        floors[case] = max(share, floors.get(case, rule.floor))
    return msgspec.structs.replace(rule, floors=floors)


@dataclass
class _Stage:
    trial: Trial
    course: Course
    policy: Policy
    rule: Rule = field(default_factory=Rule)
    records: list[PairRecord] = field(default_factory=list)
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    compiling: list[float] = field(default_factory=list)
    """Seconds that head's process of each pair compiled."""
    first: int = 0
    """Index of the first pair."""
    most_pairs: int = 1 << 30
    repeats: int = 0
    seen_at_work: Counter[SideName] = field(default_factory=Counter)
    """How often a process of a side worked between calls."""
    slowest: float = 0.0
    workload: str = ""
    unfinished: str = ""
    """Why tries of a pair that the budget ended were thrown away: no record tells it."""
    result: SuiteResult = field(default_factory=SuiteResult)

    def pair(self, phase: Phase, sentence: str, done: int, total: int) -> PairRecord:
        """Measures one pair, each part of it again where something else disturbed it. Raises BudgetEnded, and _Stopped on a fault."""
        index = self.first + len(self.records)
        thrown_away: list[str] = []
        known = len(self.benchmarks)
        try:
            benches = [self.part(index, part, thrown_away, done, total) for part in range(self.course.parts)]
        except BudgetEnded:
            del self.benchmarks[known:]
            self.unfinished = "; ".join(thrown_away)
            raise
        self.compiling.append(statistics.median(bench.compiling["head"] for bench in benches))
        # Else whoever declares only the cases that suit it would be compared on those alone.
        refused = dict.fromkeys(self.course.refused, REFUSED_SECONDS)
        record = PairRecord(
            index=index,
            order=benches[0].order,
            phase=phase,
            base=together(benches, "base") | refused,
            head=together(benches, "head") | refused,
            base_samples=samples(benches, "base"),
            head_samples=samples(benches, "head"),
            repeated=tuple(thrown_away),
        )
        self.records.append(record)
        self.trial.say("performance", sentence, done + 1, total, "pairs")
        return record

    def part(self, index: int, number: int, thrown_away: list[str], done: int, total: int) -> PairBench:
        """Measures two fresh processes: of pair `index` the part `number`, where it has several."""
        counted = self.course.parts * index + number
        order = self.course.order_of(counted)
        repeats = 0
        while True:
            began = time.monotonic()
            if self.trial.remaining() < 1.3 * (self.course.parts - number) * self.slowest:
                raise BudgetEnded
            bench = PairBench(self.course, counted, order, last=counted + 1 >= self.course.parts * self.most_pairs)
            self._run(bench)
            self.slowest = max(self.slowest, time.monotonic() - began)
            limits = Thresholds() if self.course.on_device else TAKING_TURNS
            reasons = sorted({reason for seen in bench.observations for reason in contended(seen, limits)})
            bench.check_idle([side for side, times in self.seen_at_work.items() if times >= self.course.parts])
            if bench.worked:
                # As often as a pair has parts it may be the machine's doing: such a part counts for nobody. Beyond that it is the module's.
                self.seen_at_work.update(bench.worked.keys())
                sides = " and ".join(sorted(bench.worked))
                thrown_away.append(f"a process of {sides} was at work while no call was pending")
                self.trial.say("performance", f"Pair {index + 1} is repeated: {thrown_away[-1]}", done, total, "pairs")
                continue
            if not reasons:
                break
            if not may_repeat(repeats, self.repeats):
                if any(seen.other_accelerator_processes or seen.throttled for seen in bench.observations):
                    raise UnfitMachine(f"Pair {index + 1} was disturbed each time: {'; '.join(reasons)}.")
                break
            repeats += 1
            self.repeats += 1
            thrown_away.append("; ".join(reasons))
            self.trial.say("performance", f"Pair {index + 1} is repeated: {reasons[0]}", done, total, "pairs")
        # Only of what nothing else disturbed as far as is known: a compiler that has half of a processor takes twice as long.
        if not reasons:
            bench.check_compiling()
        return bench

    def _run(self, bench: PairBench) -> None:
        with TemporaryDirectory(prefix="swapbench-") as folder:
            file = Path(folder, "benchmark.json")
            arguments = [
                "-p",
                "pytest_benchmark.plugin",
                "-p",
                "workers.suites.performance.plugin",
                "--benchmark-timer=workers.judge.clock.now",
                f"--benchmark-json={file}",
                "--benchmark-columns=median",
                "-x",
            ]
            try:
                found = run_suite("performance", bench, self.trial, arguments, quiet=True)
            finally:
                bench.close()
            if found.statuses:
                self.result.statuses += found.statuses
                self.result.reasons += found.reasons
                raise _Stopped
            self.benchmarks += json.loads(file.read_text())["benchmarks"]


class _Stopped(Exception):
    """A fault that is already among the reasons ended the stage."""


def together(benches: Sequence[PairBench], side: SideName) -> dict[str, float]:
    """Seconds of a call of each case, by name: of the parts of a pair the geometric mean, since what is compared are logarithms."""
    cases = benches[0].timings[side]
    return {name: statistics.geometric_mean(bench.timings[side][name].median for bench in benches) for name in cases}


def samples(benches: Sequence[PairBench], side: SideName) -> dict[str, list[float]]:
    """Seconds of every timed call, by case."""
    cases = benches[0].timings[side]
    return {name: [seconds for bench in benches for seconds in bench.timings[side][name].samples] for name in cases}


def judge_speed(trial: Trial, policy: Policy) -> SpeedResult:
    """Runs the stage for the trial's subject against its base. Never raises for the subject's faults."""
    sides = {"base": trial.subject.base, "head": trial.subject.head}
    course = Course(trial, sides)  # type: ignore[arg-type]
    stage = _Stage(trial, course, policy)
    try:
        course.set_up()
        where = trial.environment
        stage.workload = published(trial.subject, where)
        known = calibrations.slot_of(where.machine_class, trial.subject.kind.name, machine.facts(), stage.workload)
        stage.rule = rule_for(policy, where.device, known, course.may_lose())
        stage.most_pairs = stage.rule.looks[-1] + stage.rule.confirm_pairs
        return _with_sentinels(stage, _report(stage, _decide(stage, stage.rule)))
    except _Stopped:
        return SpeedResult(stage.result, artifacts=_artifacts(stage))
    except (UnfitMachine, calibrations.CalibrationError, torch.OutOfMemoryError) as error:
        stage.result.statuses.append("invalid_environment")
        stage.result.reasons.append(
            Reason(
                "unfit_machine",
                str(error)[:1000],
                "performance",
                next_step="The attempt can be made again at no cost to you.",
            )
        )
        return SpeedResult(stage.result, artifacts=_artifacts(stage))
    except (Wrong, CallFailed, SandboxError, StageTimedOut, Impossible) as error:
        stage.result.statuses.append(status_of(error))
        stage.result.reasons.append(reason_of(error, "performance"))
        return SpeedResult(stage.result, artifacts=_artifacts(stage))
    finally:
        try:
            trial.hosts.close()
        finally:
            course.close()


def measure_pairs(trial: Trial, policy: Policy, count: int) -> Iterator[PairRecord]:
    """`count` pairs of the trial's subject and its base, measured as an attempt does, with no rule that ends it.

    Raises what the stage's faults raise, and MeasuringFailed where a pair failed.
    """
    course = Course(trial, {"base": trial.subject.base, "head": trial.subject.head})
    stage = _Stage(trial, course, policy, most_pairs=count)
    try:
        course.set_up()
        for number in range(count):
            yield stage.pair("stop", "", number, count)
    except _Stopped:
        raise MeasuringFailed("; ".join(reason.sentence for reason in stage.result.reasons)) from None
    except (Wrong, CallFailed, SandboxError, StageTimedOut) as error:
        raise MeasuringFailed(str(error)) from error
    finally:
        try:
            trial.hosts.close()
        finally:
            course.close()


def _decide(stage: _Stage, rule: Rule) -> Decision:
    last = rule.looks[-1]
    decision = Decision("continue", "", 0, next_look=rule.looks[0])
    try:
        while decision.kind == "continue":
            goal = decision.next_look or last
            stage.pair("stop", f"Pair {len(stage.records) + 1}; the next look is at {goal}", len(stage.records), goal)
            decision = rule.decide(stage.records)
    except BudgetEnded:
        return rule.give_up(stage.records)
    if decision.kind != "faster":
        return decision
    stop = list(stage.records)
    fresh: list[PairRecord] = []
    try:
        for number in range(rule.confirm_pairs):
            sentence = f"Faster after {len(stop)} pairs; confirming pair {number + 1} of {rule.confirm_pairs}"
            fresh.append(stage.pair("confirm", sentence, number, rule.confirm_pairs))
    except BudgetEnded:
        pass
    return rule.confirm(stop, fresh)


def _with_sentinels(stage: _Stage, found: SpeedResult) -> SpeedResult:
    """The result with pairs in which both processes ran base, measured as the others were. Whatever goes wrong in them, it stands."""
    wanted = stage.policy.sentinels
    if not wanted or found.performance is None:
        return found
    first = stage.most_pairs
    alone = None
    note = ""
    try:
        if not _asks_all(stage):
            note = "Not measured: the implementation's header leaves cases out, or asks for other ones."
        else:
            alone = _Stage(
                stage.trial, stage.course.of_base_alone(), stage.policy, first=first, most_pairs=first + wanted
            )
            # Nothing that comes after the decision may use up what is left of the stage.
            alone.slowest = 2 * stage.slowest
            for number in range(wanted):
                alone.pair("same", "Base against itself, for the record of this machine", number, wanted)
    except BudgetEnded:
        note = "There was no time left in the stage."
    except _Stopped:
        assert alone is not None
        note = "; ".join(reason.sentence for reason in alone.result.reasons)
    except Exception as error:
        # The verdict is made: nothing that happens here may take it away.
        note = f"{type(error).__name__}: {error}"
    finally:
        if alone is not None:
            alone.course.stop_drawing()
    records = alone.records if alone is not None else []
    slim = [msgspec.structs.replace(record, base_samples={}, head_samples={}) for record in records]
    found.performance = msgspec.structs.replace(found.performance, sentinels=slim, sentinels_note=note[:4000])
    return found


def _asks_all(stage: _Stage) -> bool:
    """Whether the cases are those that base itself would be given, so that no header of a head decides what the machine's record holds."""
    subject, where = stage.trial.subject, stage.trial.environment
    own = dataclasses.replace(read_header(Path(subject.base.tree, subject.base.path)), limits={})
    return not stage.course.refused and list(subject.kind.cases("performance", own, where)) == stage.course.published


def interval(estimate: Estimate | None) -> Interval | None:
    """An Estimate in the protocol's form."""
    if estimate is None:
        return None
    return Interval(estimate.gain, estimate.low, estimate.high, estimate.level)


def _medians(records: list[PairRecord]) -> dict[str, tuple[float, float]]:
    names = records[0].base if records else {}
    return {
        name: (
            statistics.median(record.base[name] for record in records),
            statistics.median(record.head[name] for record in records),
        )
        for name in names
    }


def _whole_steps(stage: _Stage, decision: Decision) -> list[WholeStep]:
    """What steps of whole models have of the difference in the cases of their phase, from the pairs that the published figure comes from.

    None where nobody measured what the module that head is compared with takes of them, or not closely enough.
    """
    trial = stage.trial
    try:
        known = calibrations.of_machine(trial.environment.machine_class, machine.facts())
    except calibrations.CalibrationError:
        # The verdict is made: a file that somebody broke meanwhile does not take it away.
        return []
    if known is None or decision.estimate is None:
        return []
    base = trial.subject.base
    code = calibrations.code_of(Path(base.tree, base.path))
    fresh = [record for record in stage.records if record.phase == "confirm"]
    logs = LogRatios.of(fresh or stage.records)
    found = []
    for step in known.steps:
        share = step.shares.get(trial.subject.kind.name, {}).get(base.name)
        cases = calibrations.cases_of(logs.cases, step.phase)
        if share is None or share.code != code or not cases or share.high - share.low > max(SHARE_KNOWN, share.share):
            continue
        whole = interval(of_whole(estimate(logs.values[:, cases].mean(axis=1)), share.share, (share.low, share.high)))
        assert whole is not None
        found.append(WholeStep(step.step, share.share, whole))
    return found


def _report(stage: _Stage, decision: Decision) -> SpeedResult:
    trial = stage.trial
    speeds: Mapping[str, Speed] = {"faster": "faster", "no_difference": "no_difference", "slower": "slower"}
    speed = speeds.get(decision.kind, "inconclusive")
    medians = _medians(stage.records)
    cases = [
        CaseSpeed(result.case, *medians[result.case], interval(result.estimate) or Interval(0, 0, 0), result.p)
        for result in decision.cases
        if result.case not in stage.course.refused
    ]
    whole = interval(decision.estimate)
    against_baseline = trial.subject.base == trial.subject.baseline
    performance = Performance(
        decision=speed,
        why=decision.why,
        pairs=stage.records,
        p=decision.p,
        speedup=whole,
        cases=cases,
        against=trial.subject.base.name,
        baseline_speedup=whole if against_baseline else None,
        unfinished=stage.unfinished[:4000],
        workload=stage.workload,
        steps=_whole_steps(stage, decision),
    )
    if speed == "slower":
        stage.result.statuses.append("failed")
        stage.result.reasons.append(
            Reason(
                "slower",
                f"{decision.why[:1].upper()}{decision.why[1:]}, against {trial.subject.base.name}.",
                "performance",
                case=", ".join(decision.blocked_by),
                recipe="; ".join(
                    recipe_of(case)
                    for name, case in stage.course.cases.items()
                    if not decision.blocked_by or name in decision.blocked_by
                )[:4000],
                next_step="Compare both on the cases above with `.venv/bin/swapbench check --suite performance`, or profile with `.venv/bin/swapbench profile`.",
            )
        )
    figures: dict[str, float] = {}
    compiling = statistics.median(stage.compiling or [0.0])
    if compiling >= WORTH_TELLING:
        figures["compile seconds"] = compiling
    if stage.course.refused:
        figures["cases refused, counted as no gain"] = float(len(stage.course.refused))
    for name, case in stage.course.cases.items():
        for figure, value in stage.course.kind.figures(case, stage.course.held["head"][name]).items():
            figures.setdefault(figure, value)
        base_figures = stage.course.kind.figures(case, stage.course.held["base"][name])
        if base_figures.get("bits per weight"):
            figures.setdefault("memory ratio", figures["bits per weight"] / base_figures["bits per weight"])
    return SpeedResult(stage.result, performance, figures, _artifacts(stage))


def _artifacts(stage: _Stage) -> dict[str, str]:
    if not stage.benchmarks:
        return {}
    text = json.dumps(
        {"machine_info": {}, "commit_info": {}, "benchmarks": stage.benchmarks, "version": "pytest-benchmark"}
    )
    return {"benchmark.json": text, RULE_ARTIFACT: msgspec.json.encode(stage.rule).decode()}
