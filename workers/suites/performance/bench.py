"""What the performance suite judges with: one pair of fresh processes, every case in both."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from engine.slots.kind import Call, CallFailed, Case, Finding, HeldSet
from workers.judge.client import Answer, HostClient, Tampered
from workers.judge.hosts import Side
from workers.judge.readings import Reading, between, read
from workers.judge.trial import SteadyHost, Trial, Wrong, prepared
from workers.statistics import Observation, impossible

SideName = Literal["base", "head"]
SAMPLE_SECONDS = 0.06
WARM_UP_CALLS = 2
MIN_CALLS = 5
MAX_CALLS_PER_SAMPLE = 400
# What an honest host spends between calls: it maps and unmaps inputs, and its interpreter collects garbage.
IDLE_CPU_SHARE = 0.10
IDLE_CPU_SECONDS = 0.05


class Impossible(CallFailed):
    """A time below what any machine of this kind needs."""


@dataclass(frozen=True)
class Process:
    """One fresh process of a pair."""

    pair: int
    side: SideName
    name: str


@dataclass(frozen=True)
class Drawn:
    """A call with what it should give."""

    call: Call
    expected: dict[str, Tensor]


@dataclass
class Timing:
    """What one process gave for one case: seconds of each call of its sample, of at least `SAMPLE_SECONDS` together."""

    samples: list[float]

    @property
    def median(self) -> float:
        ordered = sorted(self.samples)
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


class Course:
    """What is the same for all pairs of an attempt: cases as varied by the seed, held tensors of each side, calls per sample."""

    def __init__(self, trial: Trial, sides: Mapping[SideName, Side]) -> None:
        self.trial = trial
        self.kind = trial.subject.kind
        self.header = trial.subject.header
        self.sides = dict(sides)
        self.source = trial.source.child("performance")
        self.published = list(self.kind.cases("performance", self.header, trial.environment))
        self.cases = {case.name: self.kind.vary(case, self.source.child(case.name, "vary")) for case in self.published}
        self.held: dict[SideName, dict[str, HeldSet]] = {}
        self.calls: dict[str, int] = {}
        self.prepares = False
        self._drawer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")

    def set_up(self) -> None:
        """Prepares both sides and learns from the base how many calls make a sample. Raises what the subject's faults raise."""
        for name, side in self.sides.items():
            self.held[name] = self._settled(side)
        host = self.trial.open(self.sides["base"])
        try:
            for case_name, case in self.cases.items():
                held = self.held["base"][case_name]
                host.hold(held)
                warm = [host.timed(host.ready(self._draw(case_name, held, "calibrate", n))) for n in range(4)]
                seconds = min(answer.seconds for answer in warm[1:])
                self.calls[case_name] = max(MIN_CALLS, min(MAX_CALLS_PER_SAMPLE, math.ceil(SAMPLE_SECONDS / seconds)))
                self._check_floor(case, held, self._draw(case_name, held, "calibrate", 0), seconds)
        finally:
            self.trial.hosts.close()

    def _settled(self, side: Side) -> dict[str, HeldSet]:
        settled: dict[str, HeldSet] = {}
        host = SteadyHost(self.trial, side)
        try:
            for name, held in prepared(self.trial, side, list(self.cases.values()), "performance").items():
                if isinstance(held, CallFailed):
                    raise held
                self.prepares |= any(item.access == "read" for item in held.values())
                host.hold(held)
                more, finding = self.kind.settle(self.cases[name], self.header, held, host)
                if finding is not None:
                    raise Wrong(finding, name)
                settled[name] = held | more
        finally:
            host.discard()
        return settled

    def _draw(self, case_name: str, held: HeldSet, *labels: str | int) -> Call:
        return self.kind.draw(self.cases[case_name], held, self.source.child(case_name, *labels))

    def draw_pair(self, pair: int, side: SideName) -> Future[dict[str, list[Drawn]]]:
        """Draws all calls of a process in the background: the same ones for both sides of a pair."""
        return self._drawer.submit(self._draw_all, pair, side)

    def _draw_all(self, pair: int, side: SideName) -> dict[str, list[Drawn]]:
        drawn: dict[str, list[Drawn]] = {}
        for name, case in self.cases.items():
            held = self.held[side][name]
            count = WARM_UP_CALLS + self.calls[name]
            calls = [self._draw(name, held, pair, n) for n in range(count)]
            drawn[name] = [Drawn(call, self.kind.expected(case, held, call)) for call in calls]
        return drawn

    def check(self, case_name: str, side: SideName, drawn: Drawn, answer: Answer) -> None:
        """Whether a timed call gave what it should. Raises Wrong, Impossible."""
        case = self.cases[case_name]
        finding: Finding | None = self.kind.compare(case, self.header, answer.outputs, drawn.expected, None)
        if finding is not None:
            raise Wrong(finding, case_name)
        self._check_floor(case, self.held[side][case_name], drawn.call, answer.seconds)

    def _check_floor(self, case: Case, held: HeldSet, call: Call, seconds: float) -> None:
        work = self.kind.work(case, held, call)
        machine = self.trial.environment
        reason = impossible(seconds, work.bytes, work.flops, machine.peak_bytes_per_s, machine.peak_flops)
        if reason is not None:
            raise Impossible(f"{case.name}: {reason}")

    def close(self) -> None:
        """Ends the drawing thread."""
        self._drawer.shutdown(wait=True, cancel_futures=True)


@dataclass
class PairBench:
    """One AB/BA pair on its way: gives pytest its processes and cases, and keeps what they gave."""

    course: Course
    pair: int
    order: Literal["AB", "BA"]
    timings: dict[SideName, dict[str, Timing]] = field(default_factory=lambda: {"base": {}, "head": {}})
    observations: list[Observation] = field(default_factory=list)
    _open: Process | None = None
    _client: HostClient | None = None
    _drawn: dict[SideName, Future[dict[str, list[Drawn]]]] = field(default_factory=dict)
    _began: Reading | None = None

    def parameters(self) -> dict[str, Sequence[Any]]:
        """Two processes in the order of the coin, each with every case."""
        sides: list[SideName] = ["base", "head"] if self.order == "AB" else ["head", "base"]
        processes = [Process(self.pair, side, f"pair{self.pair:02d}-{side}") for side in sides]
        return {"process": processes, "case": self.course.published}

    def measure(self, benchmark: Any, process: Process, published: Case) -> None:
        """Times one case in one process: pytest-benchmark's rounds are our samples, its timer is the judge's clock."""
        name = published.name
        client = self._client_for(process)
        drawn = self._drawn[process.side].result()[name]
        client.hold(self.course.held[process.side][name])
        warm, rest = drawn[:WARM_UP_CALLS], drawn[WARM_UP_CALLS:]
        answers = [client.timed(client.ready(item.call)) for item in warm]
        ready = iter([client.ready(item.call) for item in rest])
        start = read(client.process)
        pending = client.calls_seconds
        benchmark.extra_info["side"] = process.side
        benchmark.pedantic(
            lambda: answers.append(client.timed(next(ready))), rounds=len(rest), iterations=1, warmup_rounds=0
        )
        end = read(client.process)
        observation = between(start, end)
        self.observations.append(observation)
        self._check_idle(observation, client.calls_seconds - pending)
        samples = [answer.seconds for answer in answers[WARM_UP_CALLS:]]
        for item, answer in zip(drawn, answers, strict=True):
            self.course.check(name, process.side, item, answer)
        self.timings[process.side][name] = Timing(samples)

    def _client_for(self, process: Process) -> HostClient:
        if self._open != process:
            side = process.side
            if not self.course.prepares and self._drawn:
                self._drawn[side] = next(iter(self._drawn.values()))
            else:
                self._drawn[side] = self.course.draw_pair(self.pair, side)
            self._client = self.course.trial.open(self.course.sides[side])
            self._drawn[side].result()
            self._open = process
        assert self._client is not None
        self._client.call_timeout = min(30.0, self.course.trial.remaining())
        return self._client

    def _check_idle(self, observation: Observation, pending: float) -> None:
        """A host sleeps between calls. One that works while no call is pending prepares what the clock should see."""
        allowed = pending * self.course.trial.hosts.threads * (1 + IDLE_CPU_SHARE) + IDLE_CPU_SECONDS
        if observation.cpu_seconds > allowed:
            raise Tampered(
                f"The module used {observation.cpu_seconds:.2f} s of processor time while calls were pending for {pending:.2f} s: it "
                "worked between calls, outside the clock."
            )

    def close(self) -> None:
        """Ends the last host."""
        self.course.trial.hosts.close()
