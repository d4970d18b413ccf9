"""A hostile peer in place of the module host: whatever it sends, the judge ends with one of its own verdicts, in time and in bounds."""

import gc
import itertools
import os
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import get_args

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.slots.header import parse_header
from engine.slots.kind import Call, CallFailed, Environment, Held, Preparation, TensorSpec, kind_named
from engine.slots.source import Source
from workers import wire
from workers.host.mapping import Mappings
from workers.judge.client import CallTimedOut, ContributedError, HostClient, HostDied, Tampered
from workers.judge.trial import SteadyHost, prepared

DEADLINE = 0.3
HANGS = 20.0
"""Seconds after which a judge with deadlines of `DEADLINE` must be called hanging, on whatever machine."""
X = torch.arange(64, dtype=torch.float32)


class Hostile:
    """Answers a judge's requests, one step of a script for each; honest where the script has ended."""

    def __init__(self, script: list[Callable[["Hostile"], None]]) -> None:
        self.ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.script = iter(script)
        self.mappings = Mappings()
        self.request: wire.ToHost = wire.Stop()
        self.open = True
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with suppress(OSError, wire.WireError, msgspec.MsgspecError):
            while True:
                self.request, fds = wire.receive_at_host(self.sock)
                if isinstance(self.request, wire.Load):
                    for fd in fds:
                        os.close(fd)
                else:
                    self.mappings.map(self.request.buffers, fds)  # type: ignore[union-attr]
                next(self.script, honest)(self)
        self.open = False

    def say(self, message: msgspec.Struct | bytes) -> None:
        self.sock.send(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))

    def end(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(HANGS)
        self.sock.close()

    # workers.judge.client.Process
    def alive(self) -> bool:
        return self.open

    def cpu_seconds(self) -> float:
        return 0.0

    def run_delay_seconds(self) -> float:
        return 0.0

    def stderr_tail(self) -> str:
        return ""

    def exit_reason(self) -> str | None:
        return None if self.open else "ended by itself"

    def kill(self) -> None:
        self.end()


def proper(peer: Hostile) -> msgspec.Struct:
    """What an honest host would answer."""
    request = peer.request
    if isinstance(request, wire.Load):
        return wire.Loaded(0.1)
    if isinstance(request, wire.Hold):
        return wire.Kept()
    if isinstance(request, wire.Prepare):
        return wire.Prepared(request.seq, [wire.Spec("packed", (64,), "float32")])
    assert isinstance(request, wire.Collect | wire.Run)
    for region in request.outputs:
        peer.mappings.tensor(region).copy_(2 * X)
    return wire.Done(request.seq)


def honest(peer: Hostile) -> None:
    peer.say(proper(peer))


# -- what a hostile host does instead ---------------------------------------------------------------------------------


def twice(peer: Hostile) -> None:
    answer = proper(peer)
    peer.say(answer)
    peer.say(answer)


def silent(peer: Hostile) -> None:
    pass


def empty(peer: Hostile) -> None:
    peer.say(b"")


def oversized(peer: Hostile) -> None:
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * wire.MAX_MESSAGE_BYTES)
    with suppress(OSError):
        peer.say(b"\xc1" * (wire.MAX_MESSAGE_BYTES + 1))


def leave(peer: Hostile) -> None:
    peer.sock.shutdown(socket.SHUT_RDWR)


def stop_writing(peer: Hostile) -> None:
    peer.sock.shutdown(socket.SHUT_WR)


def stop_reading(peer: Hostile) -> None:
    honest(peer)
    peer.sock.shutdown(socket.SHUT_RD)


def with_descriptors(peer: Hostile) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    try:
        wire.send(peer.sock, proper(peer), fds)
    finally:
        for fd in fds:
            os.close(fd)


def flood(peer: Hostile) -> None:
    honest(peer)
    with suppress(OSError):
        for number in range(20_000):
            peer.sock.send(msgspec.msgpack.encode(wire.Done(number)), socket.MSG_DONTWAIT)


def unfinished(peer: Hostile) -> None:
    """Acknowledges without having written."""
    peer.say(wire.Done(getattr(peer.request, "seq", 0)))


def stale(peer: Hostile) -> None:
    peer.say(wire.Done(getattr(peer.request, "seq", 1) - 1))


def saying(message: msgspec.Struct | bytes) -> Callable[[Hostile], None]:
    return lambda peer: peer.say(message)


def prepared_as(specs: list[wire.Spec]) -> Callable[[Hostile], None]:
    return lambda peer: peer.say(wire.Prepared(getattr(peer.request, "seq", 0), specs))


def failed_as(error: str, sentence: str) -> Callable[[Hostile], None]:
    return lambda peer: peer.say(wire.Failed(getattr(peer.request, "seq", 0), error, sentence, sentence))


def mutated(seed: int) -> Callable[[Hostile], None]:
    """The proper answer with some of its bytes changed, cut or doubled."""

    def step(peer: Hostile) -> None:
        rng = random.Random(seed)
        data = bytearray(msgspec.msgpack.encode(proper(peer)))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            choice = rng.randrange(3)
            if choice == 0:
                data[at] = rng.randrange(256)
            elif choice == 1:
                del data[at + 1 :]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 6))
        peer.say(bytes(data))

    return step


SIZES = st.one_of(st.integers(0, 4), st.sampled_from([2**20, 2**31, 2**40]))
NAMES = st.text(min_size=1, max_size=8)
SPECS = st.builds(
    wire.Spec,
    NAMES,
    st.lists(SIZES, max_size=8).map(tuple),
    st.sampled_from(get_args(wire.Dtype)),
)
MESSAGES = st.one_of(
    st.builds(wire.Loaded, st.floats()),
    st.just(wire.Kept()),
    st.builds(wire.Done, st.integers(-(2**63), 2**64 - 1)),
    st.builds(wire.Prepared, st.integers(-(2**63), 2**63 - 1), st.lists(SPECS, max_size=4)),
    st.builds(wire.Failed, st.integers(0, 2**63 - 1), st.text(max_size=20), st.text(max_size=200)),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
STEPS = st.one_of(
    st.just(honest),
    st.just(honest),
    st.just(honest),
    st.sampled_from(
        [twice, silent, empty, oversized, leave, stop_writing, stop_reading, with_descriptors, flood, unfinished, stale]
    ),
    st.binary(min_size=1, max_size=300).map(saying),
    JSON.map(msgspec.msgpack.encode).map(saying),
    MESSAGES.map(saying),
    st.lists(SPECS, max_size=4).map(prepared_as),
    st.tuples(st.text(max_size=20), st.text(max_size=200)).map(lambda texts: failed_as(*texts)),
    st.integers(0, 2**32).map(mutated),
)


@dataclass
class Seen:
    """What a judge got out of a peer: the result of each operation, and the verdict that ended it."""

    results: list[dict[str, torch.Tensor]] = field(default_factory=list)
    verdict: CallFailed | None = None
    crash: BaseException | None = None


def judge(peer: Hostile) -> Seen:
    """Everything that a judge asks of a host, until something is wrong."""
    seen = Seen()

    def work() -> None:
        client = HostClient(peer, peer.ours, call_timeout=DEADLINE)
        try:
            client.load("/swapbench/engine/x.py", 1, DEADLINE)
            client.hold({"held": Held(X.clone(), "read"), "kept": Held(X.clone(), "write")})
            packed = client.prepare(Preparation("pack", {}, {"weight": X}))
            client.hold({name: Held(tensor, "read") for name, tensor in packed.items()})
            for _ in range(3):
                seen.results.append(client.run(Call("double", {}, {"x": X}, {"y": TensorSpec((64,), "float32")})))
        except CallFailed as verdict:
            seen.verdict = verdict
        except BaseException as crash:
            seen.crash = crash
        finally:
            client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANGS)
    assert not thread.is_alive(), "the judge hangs"
    if seen.crash is not None:
        raise seen.crash
    # A verdict's traceback would keep alive what the client had in hand.
    if seen.verdict is not None:
        seen.verdict = seen.verdict.with_traceback(None)
        seen.verdict.__context__ = None
    return seen


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True, scope="module")
def quick_collections() -> Iterator[None]:
    """Counting descriptors collects garbage each time; without what torch and pytest made before, that takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_no_host_can_crash_hang_or_fool_the_judge(script: list[Callable[[Hostile], None]]) -> None:
    before = descriptors()
    peer = Hostile(script)
    seen = judge(peer)
    assert all(torch.equal(result["y"], 2 * X) for result in seen.results)
    assert seen.verdict is not None or len(seen.results) == 3
    if seen.verdict is not None:
        assert len(str(seen.verdict)) <= 4000
        assert all(c.isprintable() or c in "\n\t" for c in str(seen.verdict))
    del peer
    assert descriptors() == before


def nth(step: Callable[[Hostile], None], place: int) -> list[Callable[[Hostile], None]]:
    return [honest] * place + [step]


# The requests of `judge`: load, hold (read), hold (write), prepare, collect, hold, outputs' hold, run, run, run.
PREPARE = 3
FIRST_RUN = 7


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (twice, Tampered),
        (flood, Tampered),
        (unfinished, Tampered),
        (stale, Tampered),
        (empty, Tampered),
        (oversized, Tampered),
        (with_descriptors, Tampered),
        (silent, CallTimedOut),
        (leave, HostDied),
        (stop_writing, HostDied),
        (stop_reading, HostDied),
        (failed_as("E", "it raised"), ContributedError),
        (lambda peer: peer.say(wire.Failed(1, "E", "to something else")), Tampered),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_misbehaviour_has_its_verdict(step: Callable[[Hostile], None], verdict: type[CallFailed]) -> None:
    before = descriptors()
    seen = judge(Hostile(nth(step, FIRST_RUN)))
    assert type(seen.verdict) is verdict, seen
    assert descriptors() == before


def test_a_message_sent_between_calls_is_not_taken_for_the_next_answer() -> None:
    peer = Hostile([])
    client = HostClient(peer, peer.ours, call_timeout=DEADLINE)
    call = Call("double", {}, {"x": X}, {"y": TensorSpec((64,), "float32")})
    client.run(call)
    ready = client.ready(call)
    peer.say(wire.Done(ready.seq))
    with pytest.raises(Tampered, match="nobody had asked for"):
        client.timed(ready)
    client.close()


def test_no_host_can_guess_the_number_of_a_call() -> None:
    peer = Hostile([])
    client = HostClient(peer, peer.ours, call_timeout=DEADLINE)
    call = Call("double", {}, {"x": X}, {"y": TensorSpec((64,), "float32")})
    numbers = [client.ready(call).seq for _ in range(64)]
    client.close()
    gaps = {b - a for a, b in itertools.pairwise(numbers)}
    assert len(set(numbers)) == 64
    assert len(gaps) == 63


@pytest.mark.parametrize(
    ("specs", "verdict", "says"),
    [
        ([wire.Spec("a", (2**40, 2**40), "float64")], CallFailed, "at most"),
        ([wire.Spec("a", (0, 2**40, 2**40, 2**40), "int8")], CallFailed, "without elements"),
        ([wire.Spec("a", (1,), "int8"), wire.Spec("a", (2,), "int8")], CallFailed, "names must differ"),
        ([wire.Spec("a", (2**40,), "int8")] * 256, CallFailed, "names must differ"),
        ([wire.Spec("a", (65 * 2**20,), "int8")], CallFailed, "at most"),
    ],
)
def test_prepared_tensors_are_bounded(specs: list[wire.Spec], verdict: type[CallFailed], says: str) -> None:
    seen = judge(Hostile(nth(prepared_as(specs), PREPARE)))
    assert type(seen.verdict) is verdict
    assert says in str(seen.verdict)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "a", "shape": [-1], "dtype": "int8"},
        {"name": "a", "shape": [2**41], "dtype": "int8"},
        {"name": "a", "shape": [1] * 9, "dtype": "int8"},
        {"name": "a", "shape": [1], "dtype": "complex64"},
        {"name": "a", "shape": [1], "dtype": "__class__"},
        {"name": "", "shape": [1], "dtype": "int8"},
        {"name": "a" * 121, "shape": [1], "dtype": "int8"},
        {"name": "a", "shape": [1.5], "dtype": "int8"},
        {"name": "a", "shape": [1], "dtype": "int8", "offset": 0},
    ],
)
def test_specs_of_another_form_are_no_message(spec: dict[str, object]) -> None:
    def step(peer: Hostile) -> None:
        message = {"type": "prepared", "seq": getattr(peer.request, "seq", 0), "specs": [spec]}
        peer.say(msgspec.msgpack.encode(message))

    seen = judge(Hostile(nth(step, PREPARE)))
    assert type(seen.verdict) is Tampered
    assert "no message" in str(seen.verdict)


def test_many_packed_tensors_do_not_use_up_the_descriptors() -> None:
    """A host that gives back 256 tensors for each of many cases, under ever new names."""
    before = descriptors()
    peer = Hostile([])
    client = HostClient(peer, peer.ours, call_timeout=10.0)
    most = 0
    for case in range(6):
        client.hold({f"{case}/{n}": Held(X, "read") for n in range(wire.MAX_TENSORS)})
        most = max(most, descriptors() - before)
    client.close()
    assert most < 150


def test_what_a_host_says_is_cut_and_made_printable() -> None:
    seen = judge(Hostile(nth(failed_as("\x1b]0;owned\x07", "\x1b[2J\x00\u202e" + "x" * 19_000), FIRST_RUN)))
    assert isinstance(seen.verdict, ContributedError)
    for text in (str(seen.verdict), seen.verdict.error, seen.verdict.traceback):
        assert all(c.isprintable() or c in "\n\t" for c in text)
    assert len(str(seen.verdict)) <= 4000


def test_a_long_unknown_word_is_not_quoted_at_length() -> None:
    message = msgspec.msgpack.encode({"type": "done", "seq": 1, "w" * 150_000: 1})
    seen = judge(Hostile(nth(saying(message), FIRST_RUN)))
    assert type(seen.verdict) is Tampered
    assert len(str(seen.verdict)) < 400


def test_headers_that_promise_more_than_they_bring_cost_no_memory() -> None:
    head = b"\x83\xa4type\xa8prepared\xa3seq\x01\xa5specs"
    bombs = [
        head + b"\xdd\xff\xff\xff\xff",
        head + b"\x91\x83\xa4name\xa1a\xa5dtype\xa4int8\xa5shape\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 190_000,
        b"\x81\xa1a" * 60_000,
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bomb in bombs:
        seen = judge(Hostile(nth(saying(bomb), PREPARE)))
        assert type(seen.verdict) is Tampered
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024


def test_a_packed_tensor_cannot_take_the_place_of_the_weight_that_it_is_checked_against() -> None:
    """A host names what it packs as it likes; the judge finds the original weight by name."""
    kind = kind_named("quantization")
    header = parse_header(
        '# /// swapbench\n# kind = "quantization"\n# name = "x"\n# class = "Q4"\n# devices = ["cpu"]\n'
        '# dtypes = ["float32"]\n# summary = "s"\n# ///\n'
    )
    where = Environment("cpu-test", "cpu", ("float32",))
    source = Source(b"\0" * 32)
    (case, *_) = kind.cases("unit", header, where)
    packed = [wire.Spec("weight", (64,), "float32"), wire.Spec("0/weight", (64,), "float32")]
    peer = Hostile([prepared_as(packed)])
    trial = SimpleNamespace(
        subject=SimpleNamespace(kind=kind),
        source=source,
        restarts=0,
        open=lambda side: HostClient(peer, peer.ours, call_timeout=DEADLINE),
        remaining=lambda: DEADLINE,
        note=lambda name, tensors: None,
        hosts=SimpleNamespace(roomy=False, start_ahead=lambda side: None),
    )
    found = prepared(trial, SteadyHost(trial, None), [case], "unit")[0][case.name]  # type: ignore[arg-type]
    assert type(found) is Tampered
    assert "'weight'" in str(found)
