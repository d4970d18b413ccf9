"""What the performance suite judges with: one pair of fresh processes, every case in both."""

import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from engine.slots.kind import Call, CallFailed, Case, Finding, HeldSet, SlotKind
from workers.judge.client import Answer, HostClient, Tampered
from workers.judge.device import DeviceClient
from workers.judge.furnace import Furnace
from workers.judge.hosts import Side
from workers.judge.readings import Reading, between, read
from workers.judge.trial import Impossible, SteadyHost, Trial, Wrong, prepared, recipe_of
from workers.statistics import Observation, impossible

SideName = Literal["base", "head"]
SAMPLE_SECONDS = 0.06
WARM_UP_CALLS = 2
MIN_CALLS = 5
MAX_CALLS_PER_SAMPLE = 400
# What an honest host spends between calls: it maps and unmaps inputs, and its interpreter collects garbage.
IDLE_CPU_SHARE = 0.10
IDLE_CPU_SECONDS = 0.05
# On the accelerator calls are drawn one by one and few of them compared: all inputs and expected outputs of a sample would not fit
# there, and the definition takes longer than what it judges. Which ones is secret; a module that cheats in a third of its calls
# gets through 24 pairs of one comparison each with a chance of 1 in 16,000.
COMPARE_SECONDS = 0.25
MAX_COMPARED = 3
HEAT_SECONDS = 0.25
HEAT_AGAIN_SECONDS = 0.04


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
    labels: tuple[str | int, ...] = ()
    """Where in the seed's stream it was drawn."""


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
        whole = replace(self.header, limits={})
        everything = self.kind.cases("performance", whole, trial.environment)
        names = {case.name for case in self.published}
        self.refused = [case.name for case in everything if case.name not in names]
        self.cases = {case.name: self.kind.vary(case, self.source.child(case.name, "vary")) for case in self.published}
        self.held: dict[SideName, dict[str, HeldSet]] = {}
        self.calls: dict[str, int] = {}
        self.prepares = False
        self.on_device = trial.environment.device == "cuda"
        self.compared: dict[str, int] = {}
        """How many calls of a sample are compared, by case, on the accelerator."""
        self.refill: dict[str, float] = {}
        """Seconds that refilling a call's inputs takes and that are taken off, by case."""
        self.furnace = Furnace() if self.on_device else None
        self._drawer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")

    def set_up(self) -> None:
        """Prepares both sides and learns from the base how many calls make a sample. Raises what the subject's faults raise."""
        self.trial.hosts.start_ahead(self.sides["base"])
        for name, side in self.sides.items():
            self.held[name] = self._settled(side)
        if self.furnace is not None:
            self._learn()
        host = self.trial.open(self.sides["base"])
        self.trial.hosts.start_ahead(self.sides[first_side(self.trial, 0)])
        try:
            for case_name, case in self.cases.items():
                held = self.held["base"][case_name]
                host.hold(held)
                warm = [host.timed(host.ready(self._draw(case_name, held, "calibrate", n))) for n in range(4)]
                seconds = min(answer.seconds for answer in warm[1:])
                self.calls[case_name] = max(MIN_CALLS, min(MAX_CALLS_PER_SAMPLE, math.ceil(SAMPLE_SECONDS / seconds)))
                first = self._draw(case_name, held, "calibrate", 0)
                self.trial.note(f"performance/{case_name}/call", first.inputs)
                self._check_floor(case, held, first, seconds)
        finally:
            self.trial.hosts.end()

    def _learn(self) -> None:
        """While no host is alive: what a refill costs, and how many calls of a sample can be compared in the time for it."""
        assert self.furnace is not None
        self.furnace.heat(HEAT_SECONDS)
        for name, case in self.cases.items():
            held = self.held["base"][name]
            call = self._draw(name, held, "calibrate", 0)
            self.refill[name] = self.trial.hosts.refills.learn(call.inputs)
            self.kind.expected(case, held, call)
            torch.cuda.synchronize()
            began = time.monotonic()
            self.kind.expected(case, held, call)
            torch.cuda.synchronize()
            self.compared[name] = max(1, min(MAX_COMPARED, int(COMPARE_SECONDS / (time.monotonic() - began))))

    def draw_one(self, name: str, side: SideName, pair: int, number: int) -> Call:
        """One call of a sample: the same one for both sides of a pair."""
        return self._draw(name, self.held[side][name], pair, number)

    def chosen(self, name: str, side: SideName, pair: int) -> set[int]:
        """Which calls of a sample are compared; drawn from the secret seed."""
        count = self.calls[name]
        source = self.source.child(name, "compared", pair, side)
        return {source.integer(0, count - 1) for _ in range(self.compared[name])}

    def compare_one(self, name: str, side: SideName, call: Call, answer: Answer) -> None:
        """Whether a kept call gave what it should. Raises Wrong, Impossible."""
        expected = self.kind.expected(self.cases[name], self.held[side][name], call)
        self.check(name, side, Drawn(call, expected), answer)

    def _settled(self, side: Side) -> dict[str, HeldSet]:
        settled: dict[str, HeldSet] = {}
        host = SteadyHost(self.trial, side)
        try:
            for name, held in prepared(self.trial, side, list(self.cases.values()), "performance").items():
                if isinstance(held, CallFailed):
                    raise held
                self.prepares |= self.kind.preparation(self.cases[name], held) is not None
                if self.on_device and type(self.kind).settle is SlotKind.settle:
                    # There is nothing to settle, and a host for it would take seconds to start.
                    settled[name] = held
                    continue
                host.hold(held)
                more, finding = self.kind.settle(self.cases[name], self.header, held, host)
                if finding is not None:
                    raise Wrong(finding, name, recipe=recipe_of(self.cases[name], "performance", name, "held"))
                settled[name] = held | more
                if side == self.trial.subject.head:
                    faces = self.kind.two_faced(
                        self.trial.model_figures, self.kind.figures(self.cases[name], settled[name])
                    )
                    if faces is not None:
                        raise Wrong(faces, name, "two_faces")
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
            drawn[name] = [
                Drawn(call, self.kind.expected(case, held, call), ("performance", name, pair, n))
                for n, call in enumerate(calls)
            ]
        return drawn

    def check(self, case_name: str, side: SideName, drawn: Drawn, answer: Answer) -> None:
        """Whether a timed call gave what it should. Raises Wrong, Impossible."""
        case = self.cases[case_name]
        finding: Finding | None = self.kind.compare(case, self.header, answer.outputs, drawn.expected, None)
        if finding is not None:
            raise Wrong(finding, case_name, recipe=recipe_of(case, *drawn.labels))
        self._check_floor(case, self.held[side][case_name], drawn.call, answer.seconds)

    def check_floor(self, case_name: str, side: SideName, call: Call, seconds: float) -> None:
        """Whether a call took the time that any machine of this kind needs. Raises Impossible."""
        self._check_floor(self.cases[case_name], self.held[side][case_name], call, seconds)

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
        if isinstance(client, DeviceClient):
            self._measure_on_device(benchmark, client, process, name)
            return
        drawn = self._take(process.side, name)
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

    def _take(self, side: SideName, name: str) -> list[Drawn]:
        """The calls of a case. Whoever is the last to need them takes them away: a pair's inputs and outputs are gigabytes."""
        drawn = self._drawn[side].result()
        shared = not self.course.prepares and len(self._drawn) == 1
        return drawn[name] if shared else drawn.pop(name)

    def _measure_on_device(self, benchmark: Any, client: DeviceClient, process: Process, name: str) -> None:
        course, side = self.course, process.side
        assert course.furnace is not None
        hosts = course.trial.hosts
        client.hold(course.held[side][name])
        chosen = course.chosen(name, side, self.pair)
        kept: list[tuple[Call, Answer]] = []
        samples: list[float] = []
        refills: list[float] = []

        def once(number: int) -> None:
            call = course.draw_one(name, side, self.pair, number)
            keep = number - WARM_UP_CALLS in chosen
            answer = client.timed(client.ready(call), keep)
            course.check_floor(name, side, call, answer.seconds)
            if keep:
                kept.append((call, answer))
            if number >= WARM_UP_CALLS:
                samples.append(answer.seconds)
                refills.append(client.last_refill_seconds)

        course.furnace.heat(HEAT_AGAIN_SECONDS)
        for number in range(WARM_UP_CALLS):
            once(number)
        numbers = iter(range(WARM_UP_CALLS, WARM_UP_CALLS + course.calls[name]))
        start, ahead = read(client.process), hosts.ahead_seconds()
        pending = client.calls_seconds
        benchmark.extra_info["side"] = side
        benchmark.pedantic(lambda: once(next(numbers)), rounds=course.calls[name], iterations=1, warmup_rounds=0)
        end = read(client.process)
        observation = between(start, end, max(0.0, hosts.ahead_seconds() - ahead))
        self.observations.append(observation)
        self._check_idle(observation, client.calls_seconds - pending)
        benchmark.extra_info["refill seconds, taken off"] = course.refill[name]
        benchmark.extra_info["refill seconds, median here"] = Timing(refills).median
        if end.sight is not None:
            sight = end.sight
            benchmark.extra_info["accelerator"] = {"MHz": sight.sm_mhz, "°C": sight.celsius, "W": sight.watts}
        for call, answer in kept:
            course.compare_one(name, side, call, answer)
        self.timings[side][name] = Timing(samples)

    def _client_for(self, process: Process) -> HostClient:
        if self._open != process and self.course.furnace is not None:
            hosts = self.course.trial.hosts
            self._client = self.course.trial.open(self.course.sides[process.side])
            self.course.furnace.heat(HEAT_SECONDS)
            first = self._open is None
            self._open = process
            # Who comes next is known: the other side, or by the coin the first of the next pair.
            other: SideName = "head" if process.side == "base" else "base"
            upcoming = other if first else first_side(self.course.trial, self.pair + 1)
            hosts.start_ahead(self.course.sides[upcoming])
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
        self.course.trial.hosts.end()


def order_of(trial: Trial, pair: int) -> Literal["AB", "BA"]:
    """Which side goes first in a pair: a coin of the secret seed."""
    return trial.source.child("performance", "coin", pair).choice(("AB", "BA"))


def first_side(trial: Trial, pair: int) -> SideName:
    """The side whose process a pair begins with."""
    return "base" if order_of(trial, pair) == "AB" else "head"
