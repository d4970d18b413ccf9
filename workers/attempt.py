"""One attempt from Job to Outcome. The same code for a Celery worker, `swapbench attempt` and `swapbench check`.

    python -m workers.attempt job.json --out outcome.json

Needs neither Django nor Celery nor a database. Leaves no process and no file behind but the outcome.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from engine.slots.header import HeaderError
from engine.slots.kind import CallFailed
from engine.slots.source import Source
from workers.checkout import CheckoutError, RefusedFile, Trees, fetch, lay_out
from workers.judge import machine
from workers.judge.client import CallTimedOut
from workers.judge.hosts import Hosts, keep_to_share
from workers.judge.inputs import INPUTS_ARTIFACT, artifact, drawn
from workers.judge.speed import SpeedResult, judge_speed
from workers.judge.trial import StageTimedOut, Trial, reason_of, status_of, subject
from workers.protocol import (
    SUITES,
    ImplementationOutcome,
    Job,
    Outcome,
    Progress,
    ProtocolError,
    Reason,
    SlotFile,
    Speed,
    Stage,
    StageReport,
    Status,
    decode_job,
    encode_outcome,
)
from workers.sandbox import NoLevel, SandboxError, best_level
from workers.sole_use import Occupied, sole_use
from workers.suites.integration.bench import IntegrationBench
from workers.suites.session import SuiteResult, run_suite, worst
from workers.suites.unit.bench import UnitBench
from workers.suites.version import ROOT, contracts_of, suite_version

Report = Callable[[Progress], None]


@dataclass
class Attempt:
    """An attempt under way: the job, where it works, whom it tells, and what it has found so far."""

    job: Job
    workspace: Path
    mirror: Path
    report: Report
    level: str
    unconfined: bool = False
    slot: int = 0
    seed: bytes = field(default_factory=lambda: os.urandom(32))

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[Stage, float] = {}
        self.artifacts: dict[str, str] = {}

    def say(self, stage: Stage, sentence: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """Reports progress."""
        self.report(Progress(self.job.attempt, stage, sentence[:500], done, total, unit, time.time()))

    def stage_seconds(self, stage: Stage) -> float:
        """What one stage may take, never beyond the attempt's own deadline."""
        left = self.job.deadline_seconds - (time.monotonic() - self.started)
        return max(0.0, min(self.job.stage_seconds.get(stage, 60.0), left))

    def run(self) -> Outcome:
        """The whole attempt. Every failure is an outcome; nothing is raised but what ends the process."""
        try:
            began = time.monotonic()
            self.say("checkout", "Fetching the commits")
            fetch(self.mirror, self.job, max(1.0, self.stage_seconds("checkout")))
            trees = lay_out(self.mirror, self.job, self.workspace)
            self.seconds["checkout"] = time.monotonic() - began
            if contracts_of(trees.base) != contracts_of(ROOT):
                raise CheckoutError(
                    "The base commit has other slot contracts than this worker. Update the worker, or rebase onto its version."
                )
        except CheckoutError as error:
            return self._outcome("invalid_environment", [], [Reason("checkout", str(error), "checkout")])
        except RefusedFile as error:
            refused = [
                ImplementationOutcome(
                    path=file.path,
                    kind=file.kind,
                    name="",
                    quality_class=None,
                    status="failed",
                    reasons=[Reason("refused_file", str(error), "checkout")],
                    summary=str(error),
                )
                for file in self.job.files
                if file.path == error.path
            ]
            return self._outcome("failed", refused, [Reason("refused_file", str(error), "checkout")])
        found = [self._judge(file, trees, n) for n, file in enumerate(self.job.files)]
        return self._outcome(worst([item.status for item in found]), found, [])

    def _judge(self, file: SlotFile, trees: Trees, index: int) -> ImplementationOutcome:
        try:
            judged = subject(file, trees)
        except (HeaderError, LookupError) as error:
            reason = reason_of(error, "unit")
            return ImplementationOutcome(
                file.path, file.kind, "", None, status_of(error), reasons=[reason], summary=reason.sentence
            )
        where = machine.environment()
        # More threads than processors are left to the judge only spin against the host's.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - where.threads))
        hosts = Hosts(self.level, where.threads, slot=self.slot, unconfined=self.unconfined, device=where.device)
        trial = Trial(judged, hosts, Source(self.seed).child(file.path), where, self.say)
        name = f"{judged.header.kind} {judged.header.name}"
        share = len(self.job.files) - index
        results: list[SuiteResult] = []
        quality: dict[str, float] = {}
        figures: dict[str, float] = {}
        meets: tuple[str, ...] = ()
        speed: SpeedResult | None = None
        try:
            refusals = judged.kind.why_not(judged.header, where)
            if refusals:
                results.append(SuiteResult(["failed"], [Reason("unsupported", " ".join(refusals), "unit")]))
            if not refusals and "unit" in self.job.suites:
                results.append(self._stage("unit", trial, share, lambda: self._unit(trial)))
            if self._goes_on(results) and "integration" in self.job.suites:
                bench = IntegrationBench(trial)
                results.append(self._stage("integration", trial, share, lambda: self._integration(trial, bench)))
                quality, meets = bench.quality, bench.meets
                figures |= bench.figures
            if self._goes_on(results) and "performance" in self.job.suites:
                self.say(
                    "performance", f"Timing {name} against {judged.base.name}", 0, self.job.policy.max_pairs, "pairs"
                )

                def measure() -> SuiteResult:
                    nonlocal speed
                    # Files that follow need the time that is left.
                    policy = self.job.policy if share == 1 else msgspec.structs.replace(self.job.policy, sentinels=0)
                    speed = judge_speed(trial, policy)
                    self.artifacts |= {artifact(file.path, name): text for name, text in speed.artifacts.items()}
                    return speed.result

                results.append(self._stage("performance", trial, share, measure))
                if speed is not None:
                    figures |= speed.figures
        finally:
            hosts.close()
        record = drawn(judged.header, where, trial.digests)
        self.artifacts[artifact(file.path, INPUTS_ARTIFACT)] = msgspec.json.encode(record).decode()
        reasons = [reason for result in results for reason in result.reasons]
        status: Status = worst([result.status for result in results])
        decision: Speed = (
            speed.performance.decision if speed is not None and speed.performance is not None else "not_measured"
        )
        return ImplementationOutcome(
            path=file.path,
            kind=file.kind,
            name=judged.header.name,
            quality_class=judged.header.quality_class,  # type: ignore[arg-type]
            status=status,
            reasons=[self._with_reproduction(reason, file) for reason in reasons],
            tests=[test for result in results for test in result.tests],
            speed=decision,
            performance=speed.performance if speed is not None else None,
            quality=quality,
            meets=meets,  # type: ignore[arg-type]
            figures=figures,
            summary=_summary(status, reasons, speed, self.job.suites),
        )

    def _unit(self, trial: Trial) -> SuiteResult:
        trial.hosts.start_ahead(trial.subject.head)
        bench = UnitBench(trial)
        try:
            # A file that cannot even be imported is told once, and not by every test.
            bench.host.client()
            return run_suite("unit", bench, trial)
        except CallFailed as error:
            return SuiteResult([status_of(error)], [reason_of(error, "unit")])
        finally:
            bench.host.discard()

    def _integration(self, trial: Trial, bench: IntegrationBench) -> SuiteResult:
        try:
            return run_suite("integration", bench, trial)
        finally:
            bench.close()

    def _stage(self, stage: Stage, trial: Trial, share: int, work: Callable[[], SuiteResult]) -> SuiteResult:
        """Runs a stage within its share of the time that is left for it."""
        began = time.monotonic()
        allowed = (self.stage_seconds(stage) - self.seconds.get(stage, 0.0)) / share
        trial.begin(allowed)
        self.say(stage, f"The {stage} suite begins")
        try:
            return work()
        except (SandboxError, StageTimedOut, CallTimedOut) as error:
            return SuiteResult([status_of(error)], [reason_of(error, stage)])
        finally:
            trial.hosts.close()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    def _goes_on(self, results: list[SuiteResult]) -> bool:
        return all(result.status == "passed" for result in results)

    def _with_reproduction(self, reason: Reason, file: SlotFile) -> Reason:
        if reason.reproduce or reason.stage in (None, "checkout", "report"):
            return reason
        # The seed is published with the outcome: at home the same inputs are drawn.
        where = f"--base {self.job.base_sha[:12]} --suite {reason.stage} --only {file.path}"
        command = f".venv/bin/swapbench check {where} --seed {self.seed.hex()}"
        return msgspec.structs.replace(reason, reproduce=command)

    def _outcome(self, status: Status, found: list[ImplementationOutcome], reasons: list[Reason]) -> Outcome:
        order: tuple[Stage, ...] = ("checkout", "unit", "integration", "performance", "report")
        return Outcome(
            attempt=self.job.attempt,
            status=status,
            implementations=found,
            stages=[StageReport(stage, round(self.seconds[stage], 3)) for stage in order if stage in self.seconds],
            reasons=reasons,
            environment=machine.facts() | {"suite version": suite_version()},
            isolation=self.level,
            seed=self.seed.hex(),
            artifacts=self.artifacts,
            job=msgspec.structs.replace(self.job, token="0" * 64),
        )


def _summary(status: Status, reasons: list[Reason], speed: SpeedResult | None, suites: Sequence[str]) -> str:
    if status == "passed" and speed is not None and speed.performance is not None:
        return speed.performance.why
    if reasons:
        return reasons[0].sentence
    if status != "passed":
        return status.replace("_", " ")
    left = [suite for suite in SUITES if suite not in suites]
    return f"Passed; not run: {', '.join(left)}." if left else "All suites passed."


def _refused(job: Job, level: str, sentence: str) -> Outcome:
    return Outcome(
        attempt=job.attempt,
        status="invalid_environment",
        implementations=[],
        stages=[],
        reasons=[Reason("isolation", sentence, next_step="`swapbench doctor` says what is missing.")],
        environment=machine.facts(),
        isolation=level,
        job=msgspec.structs.replace(job, token="0" * 64),
    )


def make_attempt(
    job: Job,
    report: Report,
    mirror: Path,
    *,
    unconfined: bool = False,
    slot: int = 0,
    temporary: Path | None = None,
    seed: bytes | None = None,
) -> Outcome:
    """Makes the attempt in a temporary workspace that is removed afterwards.

    `seed` draws the inputs of an earlier attempt again, at home; a worker never gives one.
    """
    try:
        level = "none" if unconfined else best_level()
    except NoLevel as error:
        return _refused(job, "none", f"{str(error)[:1].upper()}{str(error)[1:]} Contributor code is never run without.")
    if not unconfined and level not in job.policy.isolation_levels:
        levels = ", ".join(job.policy.isolation_levels)
        return _refused(job, level, f"This machine reaches isolation level {level!r}; the policy takes {levels}.")

    def waiting() -> None:
        sentence = "Waiting until another attempt has left this accelerator"
        report(Progress(job.attempt, "checkout", sentence, at=time.time()))

    try:
        with sole_use(slot, job.deadline_seconds, waiting):
            workspace = Path(tempfile.mkdtemp(prefix="swapbench-", dir=temporary))
            # The unprivileged user of a host must be able to enter what is bound for it.
            workspace.chmod(0o755)
            try:
                drawn_from = seed if seed is not None else os.urandom(32)
                return Attempt(job, workspace, mirror, report, level, unconfined, slot, drawn_from).run()
            finally:
                shutil.rmtree(workspace, ignore_errors=True)
    except Occupied as error:
        return _refused(job, level, str(error))


def _to_descriptor(fd: int) -> Report:
    def report(progress: Progress) -> None:
        # Whoever listened may have gone; the attempt does not depend on it.
        with suppress(OSError):
            os.write(fd, msgspec.json.encode(progress) + b"\n")

    return report


def main(arguments: list[str] | None = None) -> int:
    """Reads a job, writes an outcome. Exit status 0: an outcome was written, whatever it says; 2: the job could not be read."""
    parser = argparse.ArgumentParser(prog="swapbench attempt", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("job", type=Path, nargs="?", help="the job's JSON file")
    parser.add_argument("--out", type=Path, help="where the outcome's JSON is written")
    parser.add_argument(
        "--replay",
        type=Path,
        metavar="OUTCOME",
        help="draw an outcome's inputs again and decide again from its samples",
    )
    parser.add_argument(
        "--mirror", type=Path, default=Path("var/worker/mirror.git"), help="bare repository kept between attempts"
    )
    parser.add_argument(
        "--progress-fd", type=int, help="file descriptor that progress is written to, one JSON object a line"
    )
    parser.add_argument(
        "--slot", type=int, default=0, help="number of the accelerator, which picks the unprivileged user"
    )
    options = parser.parse_args(arguments)
    if options.replay is not None:
        from workers.replay import replay

        return replay(options.replay)
    if options.job is None or options.out is None:
        parser.error("give a job and --out, or --replay OUTCOME")
    try:
        job = decode_job(options.job.read_bytes())
    except (OSError, ProtocolError) as error:
        print(f"swapbench attempt: {error}", file=sys.stderr)
        return 2
    # Before CUDA looks: an attempt sees the accelerator of its slot and no other.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", str(options.slot))
    keep_to_share(options.slot)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = _to_descriptor(options.progress_fd) if options.progress_fd is not None else lambda _: None
    outcome = make_attempt(job, report, options.mirror, slot=options.slot)
    partial = options.out.with_name(options.out.name + ".partial")
    partial.write_text(encode_outcome(outcome))
    partial.replace(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
