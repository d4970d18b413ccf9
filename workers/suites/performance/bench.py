"""What the performance suite judges with: one pair of fresh processes, every case in both.

On the CPU both processes of a pair are alive, and take turns: one is frozen by the kernel while the other is timed. Whatever
slows the machine for longer than a turn (other tenants of its memory and caches do, for seconds) then slows both sides alike. On
the accelerator they follow each other, as work that was queued there goes on when its process is frozen; it is also steadier.
"""

import copy
import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor

from engine.slots.kind import Call, CallFailed, Case, Finding, HeldSet, SlotKind
from engine.slots.places import told_of
from engine.slots.source import Source
from workers.judge import accelerator
from workers.judge.ballast import Ballast, Room
from workers.judge.client import Answer, CallTimedOut, ContributedError, HostClient, ReadyCall, Tampered
from workers.judge.device import DeviceClient, arenas_of, beside, empty_call, put_back
from workers.judge.furnace import Furnace
from workers.judge.hosts import Side
from workers.judge.readings import Reading, between, read
from workers.judge.trial import Impossible, SteadyHost, Trial, Wrong, prepared, recipe_of, settled
from workers.sandbox import SandboxError
from workers.statistics import Observation, impossible

SideName = Literal["base", "head"]
# Of one process's calls of one case, about; on the CPU in two turns.
SAMPLE_SECONDS = 0.05
# Timed calls on the CPU before it is the other side's turn. The call before them goes untimed: it finds the caches as the other
# side left them, who would otherwise do well to leave them cold.
STRETCH = 2
TURNS = {"cpu": 2, "cuda": 1}
# How often a process on the accelerator goes through all cases. Calls that launch hundreds of kernels have two speeds there, 1.4 apart, for
# a tenth of a second or some seconds at a time: most likely a virtual machine's processor is half of a core, whose other half is at work for
# somebody else, or is not. Calls made one after the other would all meet the same one.
PASSES = 3
WARM_UP_CALLS = {"cpu": 1, "cuda": 4}
WARM_UP_AGAIN_CALLS = 2
"""In passes after the first, on the accelerator."""
MIN_CALLS = {"cpu": 4, "cuda": 9}
MAX_CALLS_PER_SAMPLE = 400
# What an honest host spends between calls: it maps and unmaps inputs, and its interpreter collects garbage.
IDLE_CPU_SHARE = 0.10
IDLE_CPU_SECONDS = 0.05
# On the accelerator calls are drawn one by one and few of them compared: all inputs and expected outputs of a sample would not fit
# there, and the definition takes longer than what it judges. Which ones is secret, and not a fixed number of them: a host may notice that one of
# its calls was compared. A module that cheats in a third of its calls gets through the 20 pairs of a gain and its confirmation, of one comparison
# each on average, with a chance of 1 in 800; in half of its calls, as it has to for a median, 1 in 22,000.
COMPARE_SECONDS = 0.25
MAX_COMPARED = 3
WEIGHED = 3
"""How often base's hosts go through all cases before their memory is known: the last two times in one host."""
COMPILE_SECONDS = 30.0
"""What the first calls of one process, of all cases together, may take beyond later ones. No cache is shared among processes: each
compile of one source is another draw (three of one model differed by 20 %), and pairs that share one are not independent."""
HEAT_SECONDS = 0.25
HEAT_AGAIN_SECONDS = 0.04


# Of an output's size, by which a replay may differ from a run of the same call: the order of sums may, the precision may not.
REPLAYED = 0.004


@dataclass(frozen=True)
class Turn:
    """One process of a pair, whose calls pytest-benchmark times; on the CPU the other one's are its rounds' setup.

    number: of the pass through the cases, on the accelerator.
    """

    side: SideName
    name: str
    number: int = 0


@dataclass(frozen=True)
class Drawn:
    """A call with what it should give."""

    call: Call
    expected: dict[str, Tensor]
    labels: tuple[str | int, ...] = ()
    """Where in the seed's stream it was drawn."""


@dataclass
class Timing:
    """What one process gave for one case: seconds of each call of its sample, of at least `SAMPLE_SECONDS` together.

    Of all passes the median: a mean of theirs would be worth cheating for in one of them.
    """

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


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
        """Timed calls in one turn or pass, by case."""
        self.prepares = False
        self.on_device = trial.environment.device == "cuda"
        self.turns = TURNS[trial.environment.device]
        self.passes = PASSES if self.on_device else 1
        self.parts = 1 if self.on_device else self.kind.parts_of_a_pair
        """How often a pair starts two fresh processes."""
        self.warm_up_calls = WARM_UP_CALLS[trial.environment.device]
        self.compared: dict[str, int] = {}
        """How many calls of a sample are compared, by case, on the accelerator."""
        self.refill: dict[str, float] = {}
        """Seconds that refilling a call's inputs takes and that are taken off, by case."""
        self.beside: dict[str, float] = {}
        """Seconds that a call takes beside its work and that are taken off, by case: what an empty call takes with base's host."""
        self.rooms: dict[str, Room] = {}
        """What calls have of the accelerator's memory, by case, where memory is claimed."""
        self.ballast = Ballast()
        self.sizes: dict[str, dict[str, int]] = {}
        """Bytes that a call's inputs and outputs need, by case, where memory is claimed."""
        self.furnace = Furnace() if self.on_device else None
        self._drawing: dict[tuple[int, SideName], Future[dict[str, list[Drawn]]]] = {}
        self._drawn_enough = Event()
        self._drawer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")

    def order_of(self, number: int) -> Literal["AB", "BA"]:
        """Which side goes first: by a coin of the secret seed for each pair, and the other way round in every second part of one."""
        order = order_of(self.trial, number // self.parts)
        swapped: dict[Literal["AB", "BA"], Literal["AB", "BA"]] = {"AB": "BA", "BA": "AB"}
        return swapped[order] if number % self.parts % 2 else order

    def first_side(self, number: int) -> SideName:
        """The side whose process a part of a pair begins with."""
        return "base" if self.order_of(number) == "AB" else "head"

    def set_up(self) -> None:
        """Prepares both sides and learns from the base how many calls make a turn. Raises what the subject's faults raise."""
        hosts = self.trial.hosts
        if self.on_device:
            hosts.step_aside()
        first: SideName = "head" if self._settles or self._has_ways else "base"
        hosts.start_ahead(self.sides[first])
        for name in ("head", "base"):
            # The base's host, which has nothing more to prove, is also the one that the calls are tried on.
            host = SteadyHost(self.trial, self.sides[name])
            try:
                # What is drawn from the seed alone is the same for both sides, and gigabytes on an accelerator.
                own = name == "head" or self.prepares or self._settles
                self.held[name] = self._settled(host, name) if own else self.held["head"]
                if name == "head" and self._has_ways:
                    self._check_ways(host)
                if name == "base":
                    if self.on_device:
                        host.discard()
                        self._learn()
                    self._try(host)
                    if self._claims_memory():
                        host.discard()
                        self._weigh(host)
            except (Wrong, Impossible, Tampered, ContributedError) as error:
                # Not what counts for both sides together, such as the time that hosts have used.
                if name == "base":
                    raise fault_of_base("set up", error) from error
                raise
            finally:
                host.discard()

    @property
    def _has_ways(self) -> bool:
        """Whether a module of this kind may be called in several ways."""
        return type(self.kind).ways is not SlotKind.ways

    def _check_ways(self, host: SteadyHost) -> None:
        """One call of each case in every way, of which one is timed: a module may know the one in which the engine calls it."""
        for name, case in self.cases.items():
            held = self.held["head"][name]
            call = self._draw(name, held, "ways", 0)
            count = len(self.kind.ways(call))
            if count == 1:
                continue
            host.hold(held)
            for number in range(count):
                if number:
                    # Each has inputs of its own: what was given before is of no use.
                    call = self._draw(name, held, "ways", number)
                way = self.kind.ways(replace(call, recorded=False))[number]
                finding = self.kind.judged(case, self.header, held, host, way, timed=True)
                if finding is not None:
                    recipe = recipe_of(case, "performance", name, "ways", number)
                    raise Wrong(told_of(way, finding), name, recipe=recipe)

    @property
    def _settles(self) -> bool:
        """Whether what a side prepared is checked through a host."""
        return type(self.kind).settle is not SlotKind.settle

    def _try(self, host: SteadyHost) -> None:
        client = host.client()
        if self.on_device and self.trial.hosts.roomy:
            self.trial.hosts.start_ahead(self.sides[self.first_side(0)])
        least = MIN_CALLS[self.trial.environment.device]
        most = MAX_CALLS_PER_SAMPLE // self.turns
        empty = client.empty_seconds() if isinstance(client, DeviceClient) else 0.0
        for name, case in self.cases.items():
            held = self.held["base"][name]
            client.hold(held)
            warm, looks = [], []
            for number in range(4):
                warm.append(client.timed(client.ready(self._draw(name, held, "calibrate", number))).seconds)
                looks.append(client.last_look_seconds if isinstance(client, DeviceClient) else 0.0)
            self.beside[name] = beside(empty, looks[1:], min(warm[1:])) if self.on_device else 0.0
            seconds = min(warm[1:]) - self.beside[name]
            wanted = max(least, min(most, math.ceil(SAMPLE_SECONDS / self.turns / seconds)))
            self.calls[name] = (
                math.ceil(wanted / self.passes) if self.on_device else math.ceil(wanted / STRETCH) * STRETCH
            )
            first = self._draw(name, held, "calibrate", 0)
            self.trial.note(f"performance/{name}/call", first.inputs)
            self._check_floor(case, held, first, min(warm[1:]))

    def _claims_memory(self) -> bool:
        """Whether memory is claimed that can be taken away: not where somebody looks at a screen that needs it."""
        given = accelerator.current() if self.on_device else None
        claimed = any(self.kind.beside_stored(case) is not None for case in self.cases.values())
        return given is not None and claimed and not given.shows_a_screen()

    def _weigh(self, host: SteadyHost) -> None:
        """How much of the accelerator's memory base's host takes in each case's calls, and with that a host of either side may.

        The first time is for what the judge's own kernels take when they compare, in a host of its own; of the other two the second counts, as what one
        case leaves behind is there in the next.
        """
        for number in range(WEIGHED):
            client = host.client()
            assert isinstance(client, DeviceClient)
            client.least = largest(self.sizes.values())
            for name, case in self.cases.items():
                held = self.held["base"][name]
                client.hold(held, name)
                client.tidy()
                for _ in range(2):
                    call = self._draw(name, held, "weigh", number)
                    answer = client.timed(client.ready(call), True)
                taken = client.taken()
                self.sizes[name] = arenas_of(call)
                self.compare_kept(
                    name, "base", client, [(call, answer)], self.source.child(name, "weigh", number, "excerpt")
                )
                beside = self.kind.beside_stored(case)
                if beside is not None:
                    self.rooms[name] = Room.of(taken, beside, [side[name] for side in self.held.values()], call)
            if number == 0:
                host.discard()

    def _learn(self) -> None:
        """While no host is alive: what a refill costs, and how many calls of a sample can be compared in the time for it."""
        assert self.furnace is not None
        self.furnace.heat(HEAT_SECONDS)
        self.trial.hosts.refills.learn(empty_call().inputs)
        for name, case in self.cases.items():
            held = self.held["base"][name]
            call = self._draw(name, held, "calibrate", 0)
            self.refill[name] = self.trial.hosts.refills.learn(call.inputs)
            call = self.kind.followed(call, _nothing(call))
            self.kind.expected(case, held, call)
            torch.cuda.synchronize()
            began = time.monotonic()
            self.kind.expected(case, held, call)
            torch.cuda.synchronize()
            self.compared[name] = max(1, min(MAX_COMPARED, int(COMPARE_SECONDS / (time.monotonic() - began))))

    def draw_one(self, name: str, side: SideName, pair: int, *labels: str | int) -> Call:
        """One call of a sample: the same one for both sides of a pair."""
        return self._draw(name, self.held[side][name], pair, *labels)

    def chosen(self, name: str, side: SideName, pair: int) -> set[int]:
        """Which calls of a sample are compared, each by a coin of its own from the secret seed: that one was tells nothing of the next.

        Of one pass at most `MAX_COMPARED`, as so many are kept in memory: after three that it noticed, which one pass in twelve has, a host knows of its rest.
        """
        calls, source = self.calls[name], self.source.child(name, "compared", pair, side)
        found: set[int] = set()
        for first in range(0, self.passes * calls, calls):
            coins = [source.integer(0, self.passes * calls - 1) for _ in range(calls)]
            found.update([first + n for n, coin in enumerate(coins) if coin < self.compared[name]][:MAX_COMPARED])
        return found

    def compare_one(self, name: str, side: SideName, call: Call, answer: Answer) -> None:
        """Whether a kept call gave what it should. Raises Wrong, Impossible."""
        call = self.kind.followed(call, answer.outputs)
        expected = self.kind.expected(self.cases[name], self.held[side][name], call)
        self.check(name, side, Drawn(call, expected), answer)

    def compare_kept(
        self, name: str, side: SideName, client: HostClient, kept: Sequence[tuple[Call, Answer]], source: Source
    ) -> None:
        """Whether kept calls gave what they should, and what was recorded gives what runs. Raises Wrong, Impossible."""
        for call, answer in kept:
            self.compare_one(name, side, call, answer)
            if call.recorded:
                self.compare_faces(name, client, call, answer, source)

    def compare_faces(self, name: str, client: HostClient, call: Call, replayed: Answer, source: Source) -> None:
        """Whether a replay gives what such a call gives that runs, as calls do where quality is judged. Raises Wrong."""
        shown, outputs = self.kind.excerpt(call, replayed.outputs, source)
        other = differing(outputs, client.timed(client.ready(shown)).outputs)
        if other is not None:
            sentence = f"{other} is another where its work was recorded than where the same call runs: what is timed must be what is judged."
            raise Wrong(Finding(sentence, other), name, "two_faces")

    def _settled(self, host: SteadyHost, name: SideName) -> dict[str, HeldSet]:
        found: dict[str, HeldSet] = {}
        all_held, others = prepared(self.trial, host, list(self.cases.values()), "performance")
        for case_name, held in all_held.items():
            if isinstance(held, CallFailed):
                raise held
            case = self.cases[case_name]
            self.prepares |= self.kind.preparation(case, held) is not None
            found[case_name] = held
            if not self._settles:
                continue
            found[case_name] = held = settled(self.trial, host, case, held)
            if name == "head":
                self.trial.hosts.start_ahead(self.sides["base"])
                figures = self.kind.figures(case, held)
                faces = self.kind.two_faced(case, self.trial.model_figures, figures)
                if faces is not None:
                    raise Wrong(faces, case_name, "two_faces")
            if case_name in others:
                other = settled(self.trial, host, case, others.pop(case_name))
                found[case_name] = held | self.kind.parts(case, held, other, host)
        return found

    def _draw(self, case_name: str, held: HeldSet, *labels: str | int) -> Call:
        return self.kind.draw(self.cases[case_name], held, self.source.child(case_name, *labels))

    def begin_pair(self, pair: int, first: SideName) -> None:
        """Starts what a pair on the CPU begins with, in the background: its hosts' processes, and drawing its calls."""
        second: SideName = "head" if first == "base" else "base"
        self.trial.hosts.start_pair_ahead(self.sides[first], self.sides[second])
        # A pair that is repeated is drawn again, rather than keeping gigabytes of the one after it.
        self._drawing = {key: found for key, found in self._drawing.items() if key[0] == pair}
        for side in (first, second) if self.prepares else (first,):
            if (pair, side) not in self._drawing:
                self._drawing[pair, side] = self._drawer.submit(self._draw_all, pair, side, self._drawn_enough)

    def start_behind(self, pair: int) -> None:
        """Starts a pair's hosts while the one before it is timed: for half of its time they do nothing but import."""
        first = self.first_side(pair)
        with suppress(SandboxError):  # whoever needs them says so
            self.trial.hosts.start_pair_ahead(
                self.sides[first], self.sides["head" if first == "base" else "base"], True
            )

    def calls_of(self, pair: int, first: SideName) -> dict[SideName, dict[str, list[Drawn]]]:
        """All calls of both processes of a pair, one turn's after the other's: the same ones where both hold the same."""
        drawing = {side: self._drawing.pop((pair, side), None) for side in self.sides}
        found: dict[SideName, dict[str, list[Drawn]]] = {}
        for side in self.sides:
            drawn = drawing[side] or drawing[first]
            assert drawn is not None
            found[side] = {name: list(calls) for name, calls in drawn.result().items()}
        return found

    def _draw_all(self, pair: int, side: SideName, enough: Event) -> dict[str, list[Drawn]]:
        drawn: dict[str, list[Drawn]] = {}
        for name, case in self.cases.items():
            if enough.is_set():
                break
            held = self.held[side][name]
            count = self.turns * (self.warm_up_calls + self.calls[name])
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
        self.check_floor(case_name, side, drawn.call, answer.seconds)

    def check_floor(self, case_name: str, side: SideName, call: Call, seconds: float) -> None:
        """Whether a call took the time that any machine of this kind needs, with what was taken off. Raises Impossible."""
        whole = put_back(seconds, self.beside[case_name])
        self._check_floor(self.cases[case_name], self.held[side][case_name], call, whole)

    def _check_floor(self, case: Case, held: HeldSet, call: Call, seconds: float) -> None:
        work = self.kind.work(case, held, call)
        machine = self.trial.environment
        reason = impossible(seconds, work.bytes, work.flops, machine.peak_bytes_per_s, machine.peak_flops)
        if reason is not None:
            raise Impossible(f"{case.name}: {reason}")

    def may_lose(self) -> dict[str, float]:
        """By case, what it may lose to what the kind trades in it."""
        sides: tuple[SideName, SideName] = ("base", "head")
        base, head = (
            [self.kind.figures(case, self.held[side][case.name]) for case in self.published] for side in sides
        )
        return self.kind.may_lose(self.published, base, head)

    def of_base_alone(self) -> "Course":
        """The same course with base on both sides, in whose place it steps: what was drawn ahead for other pairs is dropped."""
        self.stop_drawing()
        same = copy.copy(self)
        same.sides = dict.fromkeys(self.sides, self.sides["base"])
        same.held = dict.fromkeys(self.held, self.held["base"])
        return same

    def stop_drawing(self) -> None:
        """Has what is drawn ahead end, and lets go of it."""
        self._drawn_enough.set()
        for drawing in self._drawing.values():
            drawing.cancel()
        self._drawing = {}
        self._drawn_enough = Event()

    def close(self) -> None:
        """Ends the drawing thread, and gives back the accelerator's memory."""
        self.ballast.close()
        self.stop_drawing()
        self._drawer.shutdown(wait=True, cancel_futures=True)


@dataclass
class PairBench:
    """One AB/BA pair on its way, or a part of one: gives pytest its turns and cases, and keeps what they gave."""

    course: Course
    pair: int
    """The number of the pair, or of its part, counted over all pairs."""
    order: Literal["AB", "BA"]
    last: bool = False
    """Whether no other pair can follow."""
    timings: dict[SideName, dict[str, Timing]] = field(default_factory=lambda: {"base": {}, "head": {}})
    observations: list[Observation] = field(default_factory=list)
    compiling: dict[SideName, float] = field(default_factory=lambda: {"base": 0.0, "head": 0.0})
    """Seconds that the first calls of a process took beyond later ones, of all cases together: modules compile then."""
    worked: dict[SideName, str] = field(default_factory=dict)
    """What a side's process did while no call was pending, the first time that it was seen at work."""
    _turn: Turn | None = None
    _awake: SideName | None = None
    _at: SideName | None = None
    """Whose calls are made or checked."""
    _clients: dict[SideName, HostClient] = field(default_factory=dict)
    _drawn: dict[SideName, dict[str, list[Drawn]]] = field(default_factory=dict)
    _left: int = 0
    _began: Reading | None = None

    def parameters(self) -> dict[str, Sequence[Any]]:
        """Two processes in the order of the coin, each with every case, as often as it goes through them."""
        turns = [
            Turn(side, f"{self.name}-{side}" + (f"-{number + 1}" if number else ""), number)
            for side in self.sides
            for number in range(self.course.passes)
        ]
        self._left = len(turns) * len(self.course.published)
        return {"turn": turns, "case": self.course.published}

    @property
    def name(self) -> str:
        """The pair by its number, with a letter for each part."""
        index, part = divmod(self.pair, self.course.parts)
        return f"pair{index:02d}" + ("abcdef"[part] if self.course.parts > 1 else "")

    @property
    def sides(self) -> tuple[SideName, SideName]:
        """In the order of the coin."""
        return ("base", "head") if self.order == "AB" else ("head", "base")

    def measure(self, benchmark: Any, turn: Turn, published: Case) -> None:
        """Times one case in one turn: pytest-benchmark's rounds are our calls, its timer is the judge's clock.

        Raises SandboxError for what base does wrong: it is no fault of head's.
        """
        benchmark.extra_info["side"] = turn.side
        try:
            if self.course.on_device:
                self._measure_on_device(benchmark, turn, published.name)
            else:
                self._take_turns(benchmark, turn.side, published.name)
        except (CallFailed, Wrong) as error:
            if self._at == "base":
                raise fault_of_base("timed", error) from error
            raise

    def _take_turns(self, benchmark: Any, side: SideName, name: str) -> None:
        """Before a stretch of `side` the other process makes the same calls, in the setup of pytest-benchmark's round.

        So in the two turns of a pair each process goes first as often as second, and both have the same number of calls.
        """
        if not self._clients:
            self._begin()
        course = self.course
        other: SideName = "head" if side == "base" else "base"
        count = course.warm_up_calls + course.calls[name]
        drawn: dict[SideName, list[Drawn]] = {}
        ready: dict[SideName, list[ReadyCall]] = {}
        answers: dict[SideName, list[Answer]] = {"base": [], "head": []}
        for one in (other, side):
            self._give_turn(one).hold(course.held[one][name], name)
            # Whoever is the last to need a turn's calls takes them away: a pair's inputs and outputs are gigabytes.
            drawn[one] = [self._drawn[one][name].pop(0) for _ in range(count)]
            ready[one] = [self._clients[one].ready(item.call) for item in drawn[one]]
        before = {one: (self._clients[one].process.cpu_seconds(), self._clients[one].calls_seconds) for one in ready}

        def call(one: SideName) -> None:
            answers[one].append(self._give_turn(one).timed(ready[one][len(answers[one])]))

        def find_the_caches(one: SideName) -> None:
            """The call that was made before, once more; the first one of a turn comes from the warm-up."""
            self._give_turn(one).again()

        def set_up() -> None:
            if len(answers[other]) > len(answers[side]):
                return
            find_the_caches(other)
            for _ in range(STRETCH):
                call(other)
            find_the_caches(side)

        for _ in range(course.warm_up_calls):
            call(other)
            call(side)
        benchmark.pedantic(call, (side,), setup=set_up, rounds=course.calls[name], iterations=1)
        for one in (other, side):
            client, (used, pending) = self._clients[one], before[one]
            self._at = one
            self._watch_idle(one, client.process.cpu_seconds() - used, client.calls_seconds - pending)
            for item, answer in zip(drawn[one], answers[one], strict=True):
                course.check(name, one, item, answer)
            samples = [answer.seconds for answer in answers[one][course.warm_up_calls :]]
            self.compiling[one] += max(0.0, answers[one][0].seconds - statistics.median(samples))
            self.timings[one].setdefault(name, Timing()).samples.extend(samples)
            if one == other:
                benchmark.extra_info[f"{one}, seconds"] = samples
        self._left -= 1
        if not self._left:
            self._finish()

    def _begin(self) -> None:
        """Opens both processes, lets each map what it holds, and begins to watch."""
        course, hosts = self.course, self.course.trial.hosts
        first, second = self.sides
        course.begin_pair(self.pair, first)
        hosts.call_timeout = min(30.0, course.trial.remaining())
        self._clients = dict(zip(self.sides, hosts.open_pair(course.sides[first], course.sides[second]), strict=True))
        for side, client in self._clients.items():
            client.thaw()
            for name in course.cases:
                client.hold(course.held[side][name], name)
            client.freeze()
        self._drawn = course.calls_of(self.pair, first)
        self._began = read(
            *(client.process for client in self._clients.values()), cpus=self.course.trial.hosts.processors
        )
        if not self.last:
            course.start_behind(self.pair + 1)

    def _give_turn(self, side: SideName) -> HostClient:
        """Freezes the other process and lets this one go on."""
        self._at = side
        if self._awake != side:
            if self._awake is not None:
                self._clients[self._awake].freeze()
            self._clients[side].thaw()
            self._awake = side
            self._clients[side].call_timeout = min(30.0, self.course.trial.remaining())
        return self._clients[side]

    def _finish(self) -> None:
        """Ends the watch and the hosts, and begins what the next pair begins with."""
        assert self._began is not None
        ended = read(*(client.process for client in self._clients.values()), cpus=self.course.trial.hosts.processors)
        self.observations.append(between(self._began, ended, self.course.trial.hosts.ahead_seconds()))
        self.close()
        if not self.last:
            # Where a host cannot be started, whoever needs it says so.
            with suppress(SandboxError):
                self.course.begin_pair(self.pair + 1, self.course.first_side(self.pair + 1))

    def _measure_on_device(self, benchmark: Any, turn: Turn, name: str) -> None:
        course, side = self.course, turn.side
        assert course.furnace is not None
        self._at = side
        room = course.rooms.get(name)
        if room is not None:
            course.ballast.before(room, largest(course.sizes.values()))
        hosts, client = course.trial.hosts, self._device_client(turn)
        client.hold(course.held[side][name], name)
        client.beside_seconds = course.beside[name]
        chosen = course.chosen(name, side, self.pair)
        kept: list[tuple[Call, Answer]] = []
        samples: list[float] = []
        refills: list[float] = []

        def once(*labels: str | int, keep: bool = False) -> float:
            call = course.draw_one(name, side, self.pair, *labels)
            answer = client.timed(client.ready(call), keep)
            course.check_floor(name, side, call, answer.seconds)
            if keep:
                kept.append((call, answer))
            return answer.seconds

        first = turn.number * course.calls[name]
        coins = course.source.child(name, "lent", self.pair, turn.number)

        def timed(number: int) -> None:
            samples.append(once(number, keep=number in chosen))
            refills.append(client.last_refill_seconds)
            # Whether what is lent was written to: whoever knew when it is looked at could have put it back.
            if room is not None and coins.integer(0, course.calls[name] - 1) == 0:
                client.check_lent(course.held[side])

        hosts.onto_free_cores(client)
        course.furnace.heat(HEAT_AGAIN_SECONDS)
        warm_up = WARM_UP_AGAIN_CALLS if turn.number else course.warm_up_calls
        # A module compiles in the first call, and may try what is fastest. What it keeps of the memory that it has for that is counted.
        with course.ballast.first(client, room) if room is not None else nullcontext():
            warm = [once("warm", turn.number, 0)]
        if room is not None:
            client.tidy()
            client.mark_tails(course.sizes[name])
            benchmark.extra_info["bytes beside what is lent, kept and allowed"] = [client.taken(), room.allowed]
        with course.ballast.around(client, room) if room is not None else nullcontext():
            warm += [once("warm", turn.number, number) for number in range(1, warm_up)]
            numbers = iter(range(first, first + course.calls[name]))
            start, ahead = read(client.process, cpus=hosts.processors), hosts.ahead_seconds()
            pending = client.calls_seconds
            benchmark.pedantic(lambda: timed(next(numbers)), rounds=course.calls[name], iterations=1, warmup_rounds=0)
            end = read(client.process, cpus=hosts.processors)
            if room is not None:
                client.check_lent(course.held[side])
        observation = between(start, end, max(0.0, hosts.ahead_seconds() - ahead))
        self.observations.append(observation)
        self._watch_idle(side, observation.cpu_seconds, client.calls_seconds - pending)
        benchmark.extra_info["refill seconds, taken off"] = course.refill[name]
        benchmark.extra_info["refill seconds, median here"] = statistics.median(refills)
        benchmark.extra_info["seconds beside a call's work, taken off"] = course.beside[name]
        if end.sight is not None:
            sight = end.sight
            benchmark.extra_info["accelerator"] = {"MHz": sight.sm_mhz, "°C": sight.celsius, "W": sight.watts}
        self._compare(turn, name, client, kept)
        self.timings[side].setdefault(name, Timing()).samples.extend(samples)
        if turn.number == 0:
            self.compiling[side] += max(0.0, warm[0] - statistics.median(samples))

    def _compare(self, turn: Turn, name: str, client: DeviceClient, kept: list[tuple[Call, Answer]]) -> None:
        """Compares what a turn kept; once more without ballast where there is too little memory. Raises Wrong, Impossible, SandboxError."""
        course = self.course
        source = course.source.child(name, "excerpt", self.pair, turn.side, turn.number)
        with suppress(torch.OutOfMemoryError):
            course.compare_kept(name, turn.side, client, kept, source)
            return
        # What the failed comparison had is freed with its frames.
        if not course.ballast.close():
            raise SandboxError("The accelerator has too little memory for comparing what a module gave.")
        course.compare_kept(name, turn.side, client, kept, source)

    def _device_client(self, turn: Turn) -> DeviceClient:
        course, hosts = self.course, self.course.trial.hosts
        if self._turn is None or self._turn.side != turn.side:
            assert course.furnace is not None
            self._clients = {turn.side: course.trial.open(course.sides[turn.side])}
            course.furnace.heat(HEAT_SECONDS)
            first = self._turn is None
            self._turn = turn
            # Who comes next is known: the other side, or by the coin the first of the next pair.
            other: SideName = "head" if turn.side == "base" else "base"
            if hosts.roomy:
                hosts.start_ahead(course.sides[other if first else course.first_side(self.pair + 1)])
        client = self._clients[turn.side]
        assert isinstance(client, DeviceClient)
        client.least = largest(course.sizes.values())
        client.call_timeout = min(30.0, course.trial.remaining())
        return client

    def _watch_idle(self, side: SideName, used: float, pending: float) -> None:
        """A host sleeps between calls. One that works while no call is pending prepares what the clock should see."""
        allowed = pending * self.course.trial.hosts.threads * (1 + IDLE_CPU_SHARE) + IDLE_CPU_SECONDS
        if used > allowed:
            self.worked.setdefault(
                side,
                f"The module used {used:.2f} s of processor time while calls were pending for {pending:.2f} s: it "
                "worked between calls, outside the clock.",
            )

    def check_idle(self, sides: Collection[SideName]) -> None:
        """Raises SandboxError where base worked between calls and is among `sides`, Tampered for head."""
        if "base" in self.worked and "base" in sides:
            raise fault_of_base("timed", self.worked["base"])
        if "head" in self.worked and "head" in sides:
            raise Tampered(self.worked["head"])

    def check_compiling(self) -> None:
        """Called for pairs that count. Raises CallTimedOut where head's process has spent more on compiling than it may, SandboxError for base's."""
        for side, spent in self.compiling.items():
            if spent <= COMPILE_SECONDS:
                continue
            sentence = (
                f"The first calls in one process took {spent:.0f} s longer than later ones; compiling may take {COMPILE_SECONDS:.0f} s, of all "
                "cases together. Each pair starts fresh processes, which compile anew: compile for fewer shapes, or what compiles faster."
            )
            if side == "base":
                raise SandboxError(f"The base's own module compiles for too long. {sentence}")
            raise CallTimedOut(sentence)

    def close(self) -> None:
        """Ends the hosts."""
        self.course.trial.hosts.end()


def largest(sizes: Collection[Mapping[str, int]]) -> dict[str, int]:
    """The largest of each purpose."""
    return {purpose: max(each[purpose] for each in sizes) for each in sizes for purpose in each}


def _nothing(call: Call) -> dict[str, Tensor]:
    """Outputs of a call that nobody has made, on the accelerator."""
    specs = call.outputs.items()
    return {name: torch.zeros(spec.shape, dtype=spec.torch_dtype, device="cuda") for name, spec in specs}


def differing(replayed: Mapping[str, Tensor], ran: Mapping[str, Tensor]) -> str | None:
    """The first output of two answers to one call that is another in them. The cache is left out: it is compared bit for bit elsewhere."""
    for name, value in ran.items():
        if name.startswith("state:"):
            continue
        other = replayed[name]
        if value.is_floating_point():
            off = torch.linalg.vector_norm(other.float() - value.float()) / torch.linalg.vector_norm(
                value.float()
            ).clamp(min=1e-30)
        else:
            off = (other != value).float().mean()
        if not float(off) <= REPLAYED:
            return name
    return None


def fault_of_base(doing: str, said: object) -> SandboxError:
    """For what base does wrong, which is no fault of head's."""
    return SandboxError(f"The base's own module failed while it was {doing}: {said}")


def order_of(trial: Trial, pair: int) -> Literal["AB", "BA"]:
    """Which side goes first in a pair: a coin of the secret seed."""
    return trial.source.child("performance", "coin", pair).choice(("AB", "BA"))
