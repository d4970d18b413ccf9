"""The processes of a pair take turns: who is not up stands still, and both are asked for the same calls."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.slots.kind import Finding, TensorSpec
from engine.slots.source import Source
from workers.judge import speed
from workers.judge.ballast import BESIDE_BYTES, Ballast, Room
from workers.judge.client import Answer, CallTimedOut, HostClient, Tampered
from workers.judge.device import DeviceClient
from workers.judge.trial import Wrong
from workers.protocol import PairRecord, Policy
from workers.sandbox import SandboxError
from workers.statistics import Observation
from workers.suites.performance.bench import MAX_COMPARED, PASSES, Course, Drawn, PairBench, Timing, order_of


@dataclass
class Host:
    """A process as the client sees it, whose processor time the test sets."""

    used: float = 0.0
    frozen: bool = False
    refuses: bool = False

    def cpu_seconds(self) -> float:
        return self.used

    def run_delay_seconds(self) -> float:
        return 0.0

    def freeze(self) -> None:
        if self.refuses:
            raise TimeoutError("7 processes could not be stopped within 5 s")
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False


@pytest.fixture
def client_of() -> Iterator[Callable[[Host], HostClient]]:
    """Makes clients of hosts that nobody serves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield lambda host: HostClient(host, ours)  # type: ignore[arg-type]


def test_a_host_that_stood_still_goes_on(client_of: Callable[[Host], HostClient]) -> None:
    host = Host(used=1.5)
    client = client_of(host)
    client.freeze()
    assert host.frozen
    client.thaw()
    assert not host.frozen


def test_a_host_that_worked_while_it_was_frozen_is_tampered_with(client_of: Callable[[Host], HostClient]) -> None:
    host = Host(used=1.5)
    client = client_of(host)
    client.freeze()
    host.used += 0.020
    with pytest.raises(Tampered, match="20 ms while it was not its turn"):
        client.thaw()


def test_freezing_again_does_not_forgive_what_was_done_meanwhile(client_of: Callable[[Host], HostClient]) -> None:
    host = Host()
    client = client_of(host)
    client.freeze()
    host.used += 0.020
    client.freeze()
    with pytest.raises(Tampered):
        client.thaw()


def test_a_host_that_cannot_be_held_is_tampered_with(client_of: Callable[[Host], HostClient]) -> None:
    with pytest.raises(Tampered, match="could not be held"):
        client_of(Host(refuses=True)).freeze()


def test_little_by_little_is_too_much_in_the_end(client_of: Callable[[Host], HostClient]) -> None:
    host = Host()
    client = client_of(host)
    for _ in range(3):
        client.freeze()
        host.used += 0.0009
        client.thaw()
    client.freeze()
    host.used += 0.0009
    with pytest.raises(Tampered):
        client.thaw()


# -- the order of a pair's calls --------------------------------------------------------------------------------------


@dataclass
class Table:
    """Where two hosts sit: who is awake, and every call that was made, by side and number of its inputs."""

    awake: set[str] = field(default_factory=set)
    made: list[tuple[str, int]] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    """Pairs whose hosts were started while this one was timed."""


@dataclass
class Player:
    """A client as the bench uses it. Its calls take no time, but must not be made while the other one is awake."""

    side: str
    table: Table
    spends_between_calls: float = 0.0
    calls_seconds: float = 0.0
    call_timeout: float = 0.0
    used: float = 0.0
    last: int = -1
    compiles: float = 0.0
    """Seconds that its first call takes beyond later ones."""

    @property
    def process(self) -> "Player":
        return self

    def cpu_seconds(self) -> float:
        return self.used

    def run_delay_seconds(self) -> float:
        return 0.0

    def freeze(self) -> None:
        self.table.awake.discard(self.side)

    def thaw(self) -> None:
        self.table.awake.add(self.side)

    def hold(self, held: object, key: str) -> None:
        assert self.table.awake == {self.side}

    def ready(self, call: int) -> int:
        return call

    def timed(self, call: int) -> Answer:
        assert self.table.awake == {self.side}
        self.table.made.append((self.side, call))
        self.calls_seconds += 0.001
        self.used += 0.001 + self.spends_between_calls
        self.last = call
        compiling, self.compiles = self.compiles, 0.0
        return Answer(0.001 + compiling, {})

    def again(self) -> None:
        self.timed(self.last)


class Rounds:
    """pytest-benchmark's fixture, of which only `pedantic` is used."""

    def __init__(self) -> None:
        self.extra_info: dict[str, object] = {}

    def pedantic(
        self,
        target: Callable[..., None],
        args: tuple[str, ...] = (),
        setup: Callable[[], None] = lambda: None,
        **how: int,
    ) -> None:
        for _ in range(how["rounds"]):
            setup()
            target(*args)


CALLS = 4


def play(
    order: str,
    *,
    head_spends: float = 0.0,
    wrong: str = "",
    last: bool = True,
    compiles: tuple[float, float] = (0.0, 0.0),
) -> tuple[PairBench, Table]:
    """A pair of one case, played to its end with players in place of hosts."""
    table = Table()
    players = {
        "base": Player("base", table, compiles=compiles[0]),
        "head": Player("head", table, head_spends, compiles=compiles[1]),
    }

    def check(name: str, side: str, item: Drawn, answer: Answer) -> None:
        if side == wrong:
            raise Wrong(Finding("It is wrong."), name)

    drawn = [Drawn(number, {}) for number in range(2 * (1 + CALLS))]  # type: ignore[arg-type]
    course = SimpleNamespace(
        published=[SimpleNamespace(name="a")],
        cases={"a": None},
        calls={"a": CALLS},
        passes=1,
        warm_up_calls=1,
        on_device=False,
        held={"base": {"a": {}}, "head": {"a": {}}},
        sides={"base": "base", "head": "head"},
        begin_pair=lambda pair, first: None,
        parts=1,
        first_side=lambda number: "base",
        start_behind=lambda pair: table.started.append(pair),
        calls_of=lambda pair, first: {side: {"a": list(drawn)} for side in players},
        check=check,
        trial=SimpleNamespace(
            remaining=lambda: 30.0,
            source=Source(b"turns"),
            hosts=SimpleNamespace(
                processors=frozenset({0}),
                threads=1,
                call_timeout=0.0,
                end=lambda: None,
                open_pair=lambda one, two: (players[one], players[two]),
                ahead_seconds=lambda: 0.0,
            ),
        ),
    )
    bench = PairBench(course, 0, order, last=last)  # type: ignore[arg-type]
    for turn in bench.parameters()["turn"]:
        bench.measure(Rounds(), turn, course.published[0])
    return bench, table


@pytest.mark.parametrize(("order", "names"), [("AB", ["base", "head"]), ("BA", ["head", "base"])])
def test_each_side_goes_first_in_one_turn_and_both_get_the_same_calls(order: str, names: list[str]) -> None:
    bench, table = play(order)
    first, second = names
    assert [turn.side for turn in bench.parameters()["turn"]] == names
    turn = len(table.made) // 2
    assert table.made[0][0] == second, "in the first turn the second side's calls come before the first side's"
    assert table.made[turn][0] == first
    for made in (table.made[:turn], table.made[turn:]):
        one, other = ([call for side, call in made if side == name] for name in names)
        assert one == other
    assert len(bench.timings["base"]["a"].samples) == len(bench.timings["head"]["a"].samples) == 2 * CALLS


def test_a_call_that_was_made_before_comes_first_after_each_switch() -> None:
    _, table = play("AB")
    switches = [n for n in range(2, len(table.made)) if table.made[n][0] != table.made[n - 1][0]]
    seen: set[tuple[str, int]] = set()
    fresh = [n for n, call in enumerate(table.made) if call not in seen and not seen.add(call)]  # type: ignore[func-returns-value]
    turn = len(table.made) // 2
    for n in switches:
        if n not in (turn, turn + 1):  # a turn begins with its warm-up, whose inputs are new
            assert n not in fresh, f"call {n} of {table.made} is new right after a switch"


def test_the_next_pairs_hosts_are_started_meanwhile_where_there_is_one() -> None:
    assert play("AB", last=False)[1].started == [1]
    assert play("AB")[1].started == []


def test_who_works_between_calls_is_found_out() -> None:
    bench = play("AB", head_spends=0.02)[0]
    with pytest.raises(Tampered, match="between calls"):
        bench.check_idle(["head"])
    bench.check_idle(["base"])
    play("AB")[0].check_idle(["base", "head"])
    bench.worked = {"base": "It worked between calls."}
    with pytest.raises(SandboxError, match="base's own module"):
        bench.check_idle(["base"])


class Measured:
    """A pair that was measured, of which nothing is known but who worked between calls, and how busy others were."""

    worked_in: list[str]
    busy: list[float]

    def __init__(self, course: object, number: int, order: str, last: bool) -> None:
        self.number, self.order, self.last = number, order, last
        self.worked = dict.fromkeys(self.worked_in.pop(0).split(), "It worked between calls.")
        self.observations = [Observation(10.0, 1, 1.0, other_cpu_seconds=self.busy.pop(0))]
        self.compiling = {"base": 0.0, "head": 0.0}
        self.timings = {side: {"a": Timing([0.001 * (1 + 3 * (number % 2))])} for side in ("base", "head")}

    check_idle = PairBench.check_idle
    check_compiling = PairBench.check_compiling


def pairs_of(worked: list[str], busy: list[float], monkeypatch: pytest.MonkeyPatch, parts: int = 1) -> list[PairRecord]:
    """What a stage makes of its pairs, until all that the test says of them has been used; `worked`: the sides seen at work in each."""
    Measured.worked_in, Measured.busy = worked, busy
    monkeypatch.setattr(speed, "PairBench", Measured)
    monkeypatch.setattr(speed._Stage, "_run", lambda *_: None)
    trial = SimpleNamespace(remaining=lambda: 100.0, say=lambda *_: None, source=Source(b"turns"))
    course = SimpleNamespace(
        on_device=False, refused=[], parts=parts, order_of=lambda number: "BA" if number % 2 else "AB"
    )
    stage = speed._Stage(trial, course, Policy())  # type: ignore[arg-type]
    while worked:
        stage.pair("stop", "", 0, 1)
    return stage.records


def test_who_was_seen_at_work_between_calls_is_measured_again_once_before_it_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = pairs_of(["head", "", ""], [0.0, 0.0, 0.0], monkeypatch)
    assert first.repeated == ("a process of head was at work while no call was pending",)
    assert not second.repeated
    for worked in (["head", "head"], ["head", "", "head"], ["head", "", "", "", "base head"]):
        with pytest.raises(Tampered, match="between calls"):
            pairs_of(worked, [0.0] * 5, monkeypatch)


def test_of_a_pair_in_parts_as_many_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine does now and then it does more often to what is more."""
    first, _ = pairs_of(["head", "", "head", "", "", ""], [0.0] * 6, monkeypatch, parts=2)
    assert len(first.repeated) == 2
    for worked in (["head"] * 3, ["head", "", "head", "", "head"], ["head", "base", "", "head", "head"]):
        with pytest.raises(Tampered, match="between calls"):
            pairs_of(worked, [0.0] * 5, monkeypatch, parts=2)


def test_a_pair_of_two_parts_is_their_geometric_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pairs_of(["", "", "", "head", "", ""], [9.0, *[0.0] * 5], monkeypatch, parts=2)
    assert [record.index for record in (first, second)] == [0, 1]
    assert first.order == second.order == "AB"
    assert first.base == first.head == {"a": pytest.approx(0.002)}
    assert first.base_samples == {"a": [0.001, 0.004]}
    assert len(first.repeated) == len(second.repeated) == 1


def test_the_parts_of_a_pair_begin_with_different_sides() -> None:
    trial = SimpleNamespace(source=Source(b"parts"))
    for parts in (1, 2, 3):
        course: Any = SimpleNamespace(trial=trial, parts=parts)
        orders = [Course.order_of(course, number) for number in range(60)]
        assert orders[::parts] == [order_of(trial, pair) for pair in range(60 // parts)]  # type: ignore[arg-type]
        assert set(orders[::parts]) == {"AB", "BA"}
        for part in range(1, parts):
            before = orders[part - 1 :: parts]
            assert all({one, other} == {"AB", "BA"} for one, other in zip(before, orders[part::parts], strict=True))


def test_that_a_call_was_compared_tells_nothing_of_the_next() -> None:
    calls, wanted = 9, 2
    course: Any = SimpleNamespace(passes=PASSES, calls={"a": calls}, compared={"a": wanted}, source=Source(b"compared"))
    found = [Course.chosen(course, "a", "head", pair) for pair in range(2000)]
    assert all(chosen <= set(range(PASSES * calls)) for chosen in found)
    assert sum(map(len, found)) / len(found) == pytest.approx(wanted, rel=0.1)
    # Else a host that noticed as many would know that it is watched no more.
    assert {0, wanted + 1} <= {len(chosen) for chosen in found}
    after = [chosen for chosen in found if sum(number < calls for number in chosen) >= wanted]
    later = sum(number >= calls for chosen in after for number in chosen) / len(after)
    assert later == pytest.approx(wanted * (PASSES - 1) / PASSES, rel=0.2)
    # And a pass keeps no more than there is memory for.
    course.compared = {"a": PASSES * calls}
    assert len(Course.chosen(course, "a", "head", 0)) == PASSES * MAX_COMPARED


def test_what_one_side_did_is_not_held_against_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(pairs_of(["base", "head", ""], [0.0] * 3, monkeypatch)) == 1
    with pytest.raises(SandboxError, match="base's own module"):
        pairs_of(["base", "head", "base"], [0.0] * 3, monkeypatch)


def test_who_is_seen_for_the_first_time_is_not_accused_however_disturbed_the_pair_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (record,) = pairs_of(["", "", "head", ""], [9.0, 9.0, 0.0, 0.0], monkeypatch)
    assert len(record.repeated) == 3
    with pytest.raises(Tampered, match="between calls"):
        pairs_of(["head", "head"], [9.0, 9.0], monkeypatch)


def test_a_pair_that_is_not_finished_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [100.0, 0.0]
    Measured.worked_in, Measured.busy = [""], [0.0]
    monkeypatch.setattr(speed, "PairBench", Measured)
    monkeypatch.setattr(speed._Stage, "_run", lambda stage, _: stage.benchmarks.append({}))
    trial = SimpleNamespace(remaining=lambda: left.pop(0), say=lambda *_: None, source=Source(b"turns"))
    course = SimpleNamespace(on_device=False, refused=[], parts=2, order_of=lambda number: "AB")
    stage = speed._Stage(trial, course, Policy(), slowest=0.001)  # type: ignore[arg-type]
    stage.benchmarks.append({"of": "a pair before"})
    with pytest.raises(speed.BudgetEnded):
        stage.pair("stop", "", 0, 1)
    assert stage.benchmarks == [{"of": "a pair before"}]
    assert not stage.records
    assert not stage.unfinished


def test_what_was_seen_in_a_pair_that_is_not_finished_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [100.0, 0.0]
    Measured.worked_in, Measured.busy = ["head"], [0.0]
    monkeypatch.setattr(speed, "PairBench", Measured)
    monkeypatch.setattr(speed._Stage, "_run", lambda *_: None)
    trial = SimpleNamespace(remaining=lambda: left.pop(0), say=lambda *_: None, source=Source(b"turns"))
    course = SimpleNamespace(on_device=False, refused=[], parts=1, order_of=lambda number: "AB")
    stage = speed._Stage(trial, course, Policy(), slowest=0.001)  # type: ignore[arg-type]
    with pytest.raises(speed.BudgetEnded):
        stage.pair("stop", "", 0, 1)
    assert stage.unfinished == "a process of head was at work while no call was pending"


def test_what_ends_a_bank_of_pairs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise Tampered("It worked between calls.")

    monkeypatch.setattr(speed, "Course", lambda *_: SimpleNamespace(set_up=broken, close=lambda: None))
    subject = SimpleNamespace(base="base", head="head")
    trial: Any = SimpleNamespace(subject=subject, hosts=SimpleNamespace(close=lambda: None))
    with pytest.raises(speed.MeasuringFailed, match="between calls"):
        list(speed.measure_pairs(trial, Policy(), 1))


def test_turns_are_named_by_their_pair() -> None:
    bench = play("AB")[0]
    assert bench.parameters()["turn"][0].name == "pair00-base"
    bench.course.parts, bench.pair = 2, 33
    assert bench.parameters()["turn"][0].name == "pair16b-base"


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_what_first_calls_take_longer_is_compiling(order: str) -> None:
    bench = play(order, compiles=(2.0, 7.0))[0]
    assert bench.compiling["base"] == pytest.approx(2.0)
    assert bench.compiling["head"] == pytest.approx(7.0)


@pytest.mark.parametrize(("seconds", "error"), [((0.0, 31.0), CallTimedOut), ((31.0, 0.0), SandboxError)])
def test_compiling_has_a_budget(seconds: tuple[float, float], error: type[Exception]) -> None:
    bench = play("AB", compiles=seconds)[0]
    with pytest.raises(error, match="took 31 s longer than later ones; compiling may take 30 s"):
        bench.check_compiling()
    play("AB")[0].check_compiling()
    play("AB", compiles=(29.0, 29.0))[0].check_compiling()


# -- on an accelerator ------------------------------------------------------------------------------------------------


class DevicePlayer(DeviceClient):
    """A client on an accelerator as the bench uses it, whose calls take what the test says."""

    def __init__(self, side: str, made: list[tuple[str, object]], slow_pass: int) -> None:
        self.side, self.made, self.slow_pass = side, made, slow_pass
        self.process = Host()  # type: ignore[assignment]
        self.calls_seconds = 0.0

    def hold(self, held: object, key: str = "") -> dict[str, Any]:  # type: ignore[override]
        self.made.append((self.side, f"hold {key}"))
        return {}

    def tidy(self) -> None:
        self.made.append((self.side, "tidy"))

    def taken(self) -> int:
        return 0

    def mark_tails(self, used: object) -> None:
        self.made.append((self.side, f"mark {used}"))

    def check_lent(self, originals: object) -> None:
        self.made.append((self.side, "check lent"))

    def ready(self, call: Any) -> Any:
        return call

    def timed(self, ready: Any, keep: bool = True) -> Answer:
        self.made.append((self.side, ready.labels))
        number = ready.labels[-1]
        slow = ready.labels[1] != "warm" and number // CALLS == self.slow_pass
        return Answer(0.0014 if slow else 0.001, {"kept": keep} if keep else {})


class Weight(Ballast):
    """Ballast that writes down when it is there."""

    def __init__(self, made: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.made = made
        self.needed = 0

    def before(self, room: Room, arenas: object) -> None:
        self.made.append(("judge", "frees"))

    @contextmanager
    def first(self, client: DeviceClient, room: Room) -> Iterator[None]:
        yield

    @contextmanager
    def around(self, client: DeviceClient, room: Room) -> Iterator[None]:
        self.made.append(("judge", "takes"))
        yield
        self.made.append(("judge", "gives back"))

    def close(self) -> bool:
        self.made.append(("judge", "gives back all"))
        return True


def play_on_device(
    slow: dict[str, int], wrong: str = "", claims: str = "", lacking: int = 0, seed: bytes = b"calls"
) -> tuple[PairBench, list[tuple[str, Any]], list[tuple[str, object]]]:
    """A pair of two cases on an accelerator; `slow`: the pass in which a side's calls take longer; `wrong`: the side whose are; `claims`: a case for which
    memory is claimed; `lacking`: how many comparisons run out of it; `seed`: of the judge's coins.
    """
    without = [None] * lacking
    made: list[tuple[str, Any]] = []
    compared: list[tuple[str, object]] = []

    def compare_one(name: str, side: str, call: Any, answer: Answer) -> None:
        compared.append((side, call.labels))
        if side == wrong:
            raise Wrong(Finding("It is wrong."), name)

    def compare_kept(name: str, side: str, client: Any, kept: Any, source: object) -> None:
        if without:
            without.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        made.append((side, f"compare {name}"))
        for call, answer in kept:
            compare_one(name, side, call, answer)

    def draw_one(name: str, side: str, *labels: object) -> SimpleNamespace:
        return SimpleNamespace(recorded=False, labels=(name, *labels[1:]))

    course = SimpleNamespace(
        published=[SimpleNamespace(name="a"), SimpleNamespace(name="b")],
        calls={"a": CALLS, "b": CALLS},
        passes=PASSES,
        warm_up_calls=4,
        on_device=True,
        furnace=SimpleNamespace(heat=lambda seconds: None),
        held={"base": {"a": {}, "b": {}}, "head": {"a": {}, "b": {}}},
        sides={"base": "base", "head": "head"},
        rooms={claims: Room(0, 0, ())} if claims else {},
        ballast=Weight(made),
        sizes={"b": {"inputs": 7}},
        refill={"a": 0.0, "b": 0.0},
        beside={"a": 0.0005, "b": 0.0004},
        chosen=lambda name, side, pair: {1, 2 * CALLS},
        draw_one=draw_one,
        parts=1,
        first_side=lambda number: "base",
        check_floor=lambda *_: None,
        compare_kept=compare_kept,
        source=Source(seed),
        trial=SimpleNamespace(
            remaining=lambda: 30.0,
            source=Source(b"turns"),
            open=lambda side: DevicePlayer(side, made, slow.get(side, -1)),
            hosts=SimpleNamespace(
                roomy=False,
                threads=1,
                processors=frozenset({0}),
                ahead_seconds=lambda: 0.0,
                end=lambda: None,
                onto_free_cores=lambda client: made.append((client.side, "placed")),
            ),
        ),
    )
    bench = PairBench(course, 0, "BA")  # type: ignore[arg-type]
    parameters = bench.parameters()
    for turn in parameters["turn"]:
        for case in parameters["case"]:
            made.append((turn.side, turn.name))
            bench.measure(Rounds(), turn, case)
    return bench, made, compared


def test_a_process_goes_through_its_cases_several_times() -> None:
    bench, made, compared = play_on_device({})
    names = [turn.name for turn in bench.parameters()["turn"]]
    assert len(set(names)) == len(names) == 2 * PASSES
    assert [side for side, what in made if what == "hold a"] == ["head"] * PASSES + ["base"] * PASSES
    order = [what for side, what in made if side == "head" and str(what).startswith(("hold", "placed"))]
    assert order == ["hold a", "placed", "hold b", "placed"] * PASSES
    for side in ("base", "head"):
        drawn = [what for who, what in made if who == side and isinstance(what, tuple)]
        assert len(drawn) == len(set(drawn)), "no call is made twice"
        timed = [what for what in drawn if what[1] != "warm"]
        assert [what[-1] for what in timed if what[0] == "a"] == list(range(PASSES * CALLS))
        assert [what for who, what in compared if who == side and what[0] == "a"] == [("a", 1), ("a", 2 * CALLS)]  # type: ignore[index]
        assert len(bench.timings[side]["a"].samples) == PASSES * CALLS  # type: ignore[index]
    both = [{what for who, what in made if who == side and isinstance(what, tuple)} for side in ("base", "head")]
    assert both[0] == both[1], "both sides are asked for the same calls"


def test_a_pass_of_another_speed_than_the_others_counts_for_nothing() -> None:
    """Neither a neighbour at work nor cheating in one of them."""
    bench, _, _ = play_on_device({"head": 2})
    assert sorted(bench.timings["head"]["a"].samples)[-1] == 0.0014
    assert bench.timings["head"]["a"].median == bench.timings["base"]["a"].median == 0.001


def test_what_base_does_wrong_is_not_heads_fault() -> None:
    with pytest.raises(SandboxError, match="base's own module"):
        play("AB", wrong="base")
    with pytest.raises(Wrong):
        play("BA", wrong="head")
    with pytest.raises(SandboxError, match="base's own module"):
        play_on_device({}, wrong="base")
    with pytest.raises(Wrong):
        play_on_device({}, wrong="head")


def test_memory_is_taken_away_from_after_a_turns_first_call_until_what_was_lent_is_looked_at() -> None:
    made = play_on_device({}, claims="b")[1]
    whole = [what for _, what in made]
    first, last = whole.index("frees"), whole.index("compare b")
    turn = ["warm" if what[:2] == ("b", "warm") else what for what in whole[first : last + 1]]
    calls = [("b", number) for number in range(CALLS)]
    before = ["frees", "hold b", "placed", "warm", "tidy", "mark {'inputs': 7}", "takes", "warm", "warm", "warm"]
    within = turn[len(before) : -3]
    assert turn == [*before, *within, "check lent", "gives back", "compare b"]
    assert [what for what in within if what != "check lent"] == calls
    assert within[0] == calls[0]
    # Where nothing is claimed nothing is taken.
    assert whole.count("takes") == whole.count("frees") == whole.count("compare b") == 2 * PASSES
    assert whole.count("compare a") == 2 * PASSES
    looked = {
        side: [made[at - 1][1] for at, what in enumerate(made) if what == (side, "check lent")]
        for side in ("base", "head")
    }
    # After calls that the seed chooses, the same for both sides: in most passes one, in some none or several, and after the last one always.
    assert looked["base"] == looked["head"]
    assert len(looked["base"]) >= PASSES
    seldom = {len(play_on_device({}, claims="b", seed=bytes([n]))[1]) for n in range(20)}
    assert len(seldom) > 1


def test_a_comparison_that_lacks_memory_is_made_again_without_ballast() -> None:
    _, made, compared = play_on_device({}, claims="b", lacking=1)
    assert made.count(("judge", "gives back all")) == 1
    assert len(compared) == len(play_on_device({}, claims="b")[2])
    with pytest.raises(torch.OutOfMemoryError):
        play_on_device({}, claims="b", lacking=2)


class Weighed(DevicePlayer):
    """A client whose host has taken some memory more after each case."""

    def __init__(self, made: list[tuple[str, object]], had: list[int]) -> None:
        super().__init__("base", made, -1)
        self.had = had

    def taken(self) -> int:
        return self.had.pop(0)


def test_what_a_host_may_take_is_what_bases_took_once_everything_had_run() -> None:
    made: list[tuple[str, Any]] = []
    sizes = {"a": {"y": TensorSpec((100,), "float32")}, "b": {"y": TensorSpec((50,), "float32")}}
    # The judge's own kernels are in what is seen first; what the second case leaves behind is there in the first one's next turn.
    clients = [Weighed(made, [900, 950]), Weighed(made, [10, 40, 30, 41])]
    compared: list[object] = []

    def discard() -> None:
        del clients[0]

    course = SimpleNamespace(
        cases={"a": "a", "b": "b"},
        held={"base": {"a": {}, "b": {}}, "head": {"a": {}, "b": {}}},
        kind=SimpleNamespace(beside_stored=lambda case: {"a": 1000, "b": None}[case]),
        sizes={},
        source=SimpleNamespace(child=lambda *labels: None),
        rooms={},
        compare_kept=lambda name, side, client, kept, source: compared.append((name, len(kept))),
        _draw=lambda name, held, *labels: SimpleNamespace(labels=(name, *labels), inputs={}, outputs=sizes[name]),
    )
    host = SimpleNamespace(client=lambda: clients[0], discard=discard)
    Course._weigh(course, host)  # type: ignore[arg-type]
    assert list(course.rooms) == ["a"]
    assert course.rooms["a"].allowed == 30 + 1000 + BESIDE_BYTES
    assert compared == [("a", 1), ("b", 1)] * 3
    assert len(clients) == 1
    # What is outgrown would stay mapped: the second host is lent the largest at once.
    assert clients[0].least == {"inputs": 0, "outputs": 512}
    # In each turn it gives back first what it only keeps for later.
    assert [what for _, what in made][:4] == ["hold a", "tidy", ("a", "weigh", 0), ("a", "weigh", 0)]
