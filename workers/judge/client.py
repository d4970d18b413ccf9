"""The judge's side of a module host: start one, share buffers, make calls, hold the clock."""

import os
import socket
import time
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

import msgspec
import torch
from torch import Tensor

from engine.slots.kind import Call, CallFailed, HeldSet, Preparation, TensorSpec, bits, rewritten
from workers import wire
from workers.judge import clock
from workers.judge.buffers import Pack, Poison

SAMPLE = 256
MAX_PREPARED_BYTES = 2 * 1024**3
PREPARED_PER_INPUT = 4
PREPARED_BESIDE = 64 * 1024**2
REGIONS_PER_MESSAGE = 200
# A thread that is told to stop may end the system call that it is in. At once, and over a host's life.
FROZEN_CPU_SECONDS = 0.001
FROZEN_CPU_SECONDS_IN_ALL = 0.003
MAX_SENTENCE = 3_000
MAX_TAIL = 2_500
MAX_TRACEBACK = 16_000


class Tampered(CallFailed):
    """The host did what no honest host does; `str(error)` says what."""


class HostDied(CallFailed):
    """The host ended by itself, or was ended by a limit. `tail` is the end of what it wrote, made fit to print."""

    def __init__(self, sentence: str, tail: str = "") -> None:
        super().__init__(sentence)
        self.tail = wire.printable(tail.strip(), 8 * len(tail) + 1)[-MAX_TAIL:]


class CallTimedOut(CallFailed):
    """The host did not answer in time."""


class HostStarved(CallFailed):
    """The host did not answer in time because other programs had the processor: the machine's fault."""


class ContributedError(CallFailed):
    """The implementation raised. `traceback` is text for its author; nothing in either makes a terminal do more than print."""

    def __init__(self, sentence: str, error: str, traceback: str) -> None:
        super().__init__(wire.printable(sentence, MAX_SENTENCE))
        self.error = wire.printable(error, 200)
        self.traceback = wire.printable(traceback, MAX_TRACEBACK)


class Process(Protocol):
    """What the client needs of a confined process (workers.sandbox.HostProcess)."""

    def alive(self) -> bool: ...
    def cpu_seconds(self) -> float: ...
    def run_delay_seconds(self) -> float: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def stderr_tail(self) -> str: ...
    def exit_reason(self) -> str | None: ...
    def kill(self) -> None: ...


@dataclass
class ReadyCall:
    """A call whose inputs lie in a sealed buffer and whose message is encoded, so that the clock sees only the call."""

    call: Call
    request: wire.Run
    message: bytes
    pack: Pack
    outputs: Pack
    sample: dict[str, Tensor]

    @property
    def seq(self) -> int:
        """The number that the answer must carry."""
        return self.request.seq


@dataclass
class Answer:
    """What came of a timed call: seconds by the judge's clock, and the judge's own copy of outputs and checked state."""

    seconds: float
    outputs: dict[str, Tensor]


@dataclass
class HostClient:
    """Speaks with one module host. Not thread-safe. The judge ends it with `close`, which ends everything it started."""

    process: Process
    sock: socket.socket
    call_timeout: float = 30.0
    poison: Poison = field(default_factory=Poison)
    load_seconds: float = 0.0
    calls_seconds: float = 0.0
    """Sum of the time that calls were pending, by the judge's clock."""
    waited_seconds: float = 0.0
    """Sum of the time that the judge waited for any answer."""
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    pack_type: ClassVar[type[Pack]] = Pack

    def __post_init__(self) -> None:
        self._held: dict[str, Pack] = {}
        self._shared: dict[str, list[Pack]] = {}
        self._outputs: dict[tuple[tuple[str, TensorSpec], ...], Pack] = {}
        self._known_buffers: set[int] = set()
        self._last: ReadyCall | None = None
        self._before = (0.0, 0.0, 0.0)
        self._cpu_when_frozen: float | None = None
        self._ran_frozen = 0.0

    # -- life -------------------------------------------------------------------------------------------------------

    def load(self, path: str, threads: int, timeout: float) -> None:
        """Has the host import the slot file. Raises ContributedError, HostDied, CallTimedOut."""
        deadline = time.monotonic() + timeout
        began = time.monotonic()
        # What it waited for others while it was started is no sign of how it fares later.
        self._before = (self.process.cpu_seconds(), self.process.run_delay_seconds(), self.waited_seconds)
        if not isinstance(
            self._ask(wire.Load(path, threads, self.device), [], 0, deadline, "importing the file"), wire.Loaded
        ):
            raise Tampered("The module host did not answer the request to load the file.")
        self.load_seconds = time.monotonic() - began

    def close(self) -> None:
        """Ends the host and everything it started."""
        self.process.kill()
        self.sock.close()
        self._held.clear()
        self._shared.clear()
        self._outputs.clear()
        self._last = None

    def leave(self, deadline: float) -> None:
        """Has a host that is looked into leave what was found: it answers when that is written."""
        self._ask(wire.Stop(), [], 0, deadline, "writing down what was found")

    def settle_down(self) -> None:
        """Returns once the host has imported what it needs and reads its messages."""
        self._ask_to_hold(wire.Hold([], []), [], time.monotonic() + self.call_timeout)

    def freeze(self) -> None:
        """Holds the host: nothing of it runs until `thaw`. Harmless on one that is frozen. Raises Tampered where it cannot be held."""
        try:
            self.process.freeze()
        except TimeoutError as error:
            raise Tampered(f"The module host could not be held while it was not its turn: {error}.") from None
        if self._cpu_when_frozen is None:
            self._cpu_when_frozen = self.process.cpu_seconds()

    def thaw(self) -> None:
        """Lets a frozen host go on. Raises Tampered where it ran nevertheless."""
        if self._cpu_when_frozen is None:
            return
        ran = self.process.cpu_seconds() - self._cpu_when_frozen
        self._cpu_when_frozen = None
        self._ran_frozen += ran
        self.process.thaw()
        if ran > FROZEN_CPU_SECONDS or self._ran_frozen > FROZEN_CPU_SECONDS_IN_ALL:
            raise Tampered(f"The module worked for {1000 * self._ran_frozen:.0f} ms while it was not its turn.")

    def __enter__(self) -> "HostClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- engine.slots.kind.Runner -----------------------------------------------------------------------------------

    def hold(self, held: HeldSet, key: str = "") -> dict[str, Tensor]:
        """Shares tensors that outlive a call; see engine.slots.kind.Runner. They take the place of others of the same names.

        What was held under `key` before is held again as it lies there, without anything being copied.
        """
        deadline = time.monotonic() + self.call_timeout
        views = {name: item.tensor for name, item in held.items() if item.access == "private"}
        packs = self._shared.get(key, [])
        for pack in packs:
            self._ask_to_hold(wire.Hold([], pack.regions), [], deadline)
        if not packs:
            for access in ("read", "write"):
                tensors = [(name, item.tensor) for name, item in held.items() if item.access == access]
                # Few buffers for many tensors, as each costs two descriptors (mmap keeps one, too), and a host chooses how many it packs.
                for start in range(0, len(tensors), REGIONS_PER_MESSAGE):
                    part = dict(tensors[start : start + REGIONS_PER_MESSAGE])
                    packs.append(self.pack_type.of(part, writable=access == "write"))
                    self._share(packs[-1], packs[-1].regions, deadline)
        for pack in packs:
            self._held |= dict.fromkeys(pack.views, pack)
            views |= pack.views
        if key:
            self._shared[key] = packs
        return views

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Runs a preparation; see engine.slots.kind.Runner."""
        deadline = time.monotonic() + self.call_timeout
        seq = _new_seq()
        pack = self.pack_type.of(preparation.inputs)
        self._written()
        what = f"'{preparation.operation}'"
        request = wire.Prepare(seq, preparation.operation, preparation.params, [pack.buffer.describe()], pack.regions)
        answer = self._ask(request, [pack.buffer.fd], seq, deadline, what)
        if not isinstance(answer, wire.Prepared) or answer.seq != seq:
            raise Tampered(f"The module host gave an answer to {what} that was not asked for.")
        specs = {spec.name: TensorSpec(spec.shape, spec.dtype) for spec in answer.specs}
        if any(":" in name for name in specs):
            raise Tampered(f"{what} named a tensor with a colon; such names are the judge's.")
        if len(specs) != len(answer.specs):
            raise CallFailed(f"{what} returned several tensors of one name; names must differ.")
        if any(spec.nbytes == 0 for spec in specs.values()):
            raise CallFailed(f"{what} returned a tensor without elements.")
        total = sum(spec.nbytes for spec in specs.values())
        # What the judge keeps for every case at once: a module that returns more than it was given, many times over, must not fill it.
        given = sum(tensor.nbytes for tensor in preparation.inputs.values())
        limit = min(MAX_PREPARED_BYTES, PREPARED_PER_INPUT * given + PREPARED_BESIDE)
        if total > limit:
            raise CallFailed(f"{what} returned {total:,} bytes for {given:,}; at most {limit:,} are taken.")
        outputs = self.pack_type(specs, writable=True)
        seq = _new_seq()
        collect = wire.Collect(seq, [outputs.buffer.describe()], outputs.regions)
        _check_done(self._ask(collect, [outputs.buffer.fd], seq, deadline, what), seq, what)
        return {name: view.clone() for name, view in outputs.views.items()}

    def run(self, call: Call) -> dict[str, Tensor]:
        """Runs a call and returns the judge's copy of its outputs; see engine.slots.kind.Runner."""
        return self.timed(self.ready(call)).outputs

    # -- the clock --------------------------------------------------------------------------------------------------

    def ready(self, call: Call) -> ReadyCall:
        """Lays the inputs of a call into a sealed buffer of its own and encodes its message; the host learns nothing yet.

        A buffer for each call costs the host one mmap inside the clock, the same for both sides, and makes it impossible to
        see the inputs before the clock runs (a host that polls a standing buffer would start early).
        """
        seq = _new_seq()
        pack = self.pack_type.of(call.inputs)
        key = tuple(call.outputs.items())
        outputs = self._outputs.get(key)
        if outputs is None:
            outputs = self._outputs[key] = Pack(call.outputs, writable=True)
        buffers = [pack.buffer.describe()]
        message = wire.Run(
            seq, call.operation, call.params, buffers, pack.regions, outputs.regions, [pack.buffer.number]
        )
        sample = {}
        for name, view in outputs.views.items():
            sample[name] = _secret_places(view.numel())
        return ReadyCall(call, message, wire.encode(message), pack, outputs, sample)

    def again(self) -> None:
        """Makes the last timed call once more, for what that leaves in the caches: nothing of it is timed, kept or compared.

        What is held stays as it is. A host can tell by the inputs that it was asked the same before; it gains nothing: what it prepares then is
        no longer true in the next call.
        """
        assert self._last is not None
        request = msgspec.structs.replace(self._last.request, seq=_new_seq())
        call = replace(self._last.call, rewrites={})
        self.timed(replace(self._last, call=call, request=request, message=wire.encode(request)), keep=False)

    def timed(self, ready: ReadyCall, keep: bool = True) -> Answer:
        """Makes a call with the clock running from before the message is sent until a secret sample of the output is read.

        What is held is rewritten as the call asks, and put back. Without `keep` the answer holds no outputs. Raises Tampered where the
        sample still held poison or the snapshot taken afterwards differs from it: the host acknowledged before it had finished.
        """
        what = f"'{ready.call.operation}'"
        deadline = time.monotonic() + self.call_timeout
        if ready.outputs.buffer.number not in self._known_buffers:
            self._share(ready.outputs, [], deadline)
            self._known_buffers.add(ready.outputs.buffer.number)
        for view in ready.outputs.views.values():
            self.poison.fill(view)
        flats = {name: bits(view).view(-1) for name, view in ready.outputs.views.items()}
        state = [(bits(self._held[name].views[name]).view(-1), probe) for name, probe in ready.call.probes.items()]
        self._expect_silence()
        self._wait_until(deadline, what)
        # As late as can be: what is rewritten is seen by whoever looks.
        with rewritten(self._rewritable(ready.call), ready.call.rewrites):
            return self._clocked(ready, keep, flats, state)

    def _rewritable(self, call: Call) -> dict[str, Tensor]:
        return {name: self._held[name].views[name] for name in call.rewrites}

    def _clocked(
        self, ready: ReadyCall, keep: bool, flats: dict[str, Tensor], state: list[tuple[Tensor, Tensor]]
    ) -> Answer:
        what = f"'{ready.call.operation}'"
        fds = [ready.pack.buffer.fd]
        started = time.perf_counter_ns()
        self._send_encoded(ready.message, fds)
        answer = self._next_answer(what)
        seen = {name: flat.index_select(0, ready.sample[name]) for name, flat in flats.items()}
        written = [flat.index_select(0, probe) for flat, probe in state]
        seconds = (time.perf_counter_ns() - started) / 1e9

        self.calls_seconds += seconds
        clock.advance(seconds)
        if self._last is not None and self._last.pack is not ready.pack:
            self._last.pack.buffer.close()
        self._last = ready
        _check_done(answer, ready.seq, what)
        if not keep:
            return Answer(seconds, {})
        outputs = {name: view.clone() for name, view in ready.outputs.views.items()}
        for name, sample in seen.items():
            dtype = outputs[name].dtype
            unwritten = self.poison.count(sample.view(dtype)) if dtype.is_floating_point else 0
            if unwritten:
                raise Tampered(
                    f"The call was acknowledged before {name!r} was complete: {unwritten} of {len(sample)} elements that the "
                    "judge read at once were still unwritten."
                )
            if not torch.equal(bits(outputs[name]).view(-1)[ready.sample[name]], sample):
                raise Tampered(f"{name!r} changed after the call was acknowledged.")
        for name in ready.call.check_state:
            outputs[f"state:{name}"] = self._held[name].views[name].clone()
        for (name, probe), value in zip(ready.call.probes.items(), written, strict=True):
            if not torch.equal(bits(outputs[f"state:{name}"]).view(-1)[probe], value):
                raise Tampered(f"{name!r} was written to after the call was acknowledged.")
        return Answer(seconds, outputs)

    def _written(self) -> None:
        """Returns once what was written to shared memory lies there: on an accelerator a host could read it before."""

    def _share(self, pack: Pack, regions: list[wire.Region], deadline: float) -> None:
        """Has the host map a buffer; its descriptor is given up at once, as mappings stay."""
        self._ask_to_hold(wire.Hold([pack.buffer.describe()], regions), [pack.buffer.fd], deadline)
        pack.buffer.close()

    def _ask_to_hold(self, message: wire.Hold, fds: list[int], deadline: float) -> None:
        if not isinstance(self._ask(message, fds, 0, deadline, "mapping shared tensors"), wire.Kept):
            raise Tampered("The module host did not answer the request to map shared tensors.")

    # -- messages ---------------------------------------------------------------------------------------------------

    def _ask(self, message: msgspec.Struct, fds: list[int], seq: int, deadline: float, what: str) -> wire.FromHost:
        """The answer to a message. Raises ContributedError where it is a failure, Tampered, HostDied, CallTimedOut."""
        self._expect_silence()
        self._wait_until(deadline, what)
        self._send_encoded(wire.encode(message), fds)
        answer = self._next_answer(what)
        if isinstance(answer, wire.Failed):
            _check_done(answer, seq, what)
        return answer

    def _expect_silence(self) -> None:
        """Nothing may wait to be read when a request goes out: it would be taken for its answer."""
        try:
            if wire.waiting(self.sock):
                raise Tampered("The module host sent a message that nobody had asked for.")
        except wire.Closed:
            raise self._died() from None
        except OSError:
            raise self._died() from None

    def _wait_until(self, deadline: float, what: str) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise CallTimedOut(f"{what} did not end within {self.call_timeout:.0f} s.")
        self.sock.settimeout(left)

    def _send_encoded(self, data: bytes, fds: list[int]) -> None:
        try:
            wire.send_encoded(self.sock, data, fds)
        except TimeoutError:
            raise CallTimedOut("The module host stopped reading its messages.") from None
        except OSError:
            raise self._died() from None

    def starved(self) -> bool:
        """Whether the host wanted to work and was not let: it had less than an eighth of a processor, and waited for it most of the time."""
        used, delayed, waited_before = self._before
        waited = self.waited_seconds - waited_before
        return (
            self.process.cpu_seconds() - used < waited / 8 and self.process.run_delay_seconds() - delayed > waited / 2
        )

    def _next_answer(self, what: str) -> wire.FromHost:
        began = time.monotonic()
        try:
            return self._received(what)
        except CallTimedOut as late:
            self.waited_seconds += time.monotonic() - began
            began = time.monotonic()
            if self.starved():
                raise HostStarved(f"{late} Other programs on this machine kept it from working.") from None
            raise
        finally:
            self.waited_seconds += time.monotonic() - began

    def _received(self, what: str) -> wire.FromHost:
        try:
            return wire.receive_at_judge(self.sock)
        except TimeoutError:
            raise CallTimedOut(f"{what} did not end within {self.sock.gettimeout():.0f} s.") from None
        except wire.Closed:
            raise self._died() from None
        except wire.WireError as error:
            raise Tampered(str(error)) from None
        except OSError:
            raise self._died() from None

    def _died(self) -> HostDied:
        deadline = time.monotonic() + min(2.0, self.call_timeout)
        while self.process.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        reason = self.process.exit_reason() if not self.process.alive() else "it closed its connection"
        return HostDied(f"The module host ended: {reason}.", self.process.stderr_tail())


def _new_seq() -> int:
    """A number that no host can guess, so that no answer can be sent before its question was read."""
    return int.from_bytes(os.urandom(6), "big") + 1


def _secret_places(elements: int) -> Tensor:
    """int64[n] indices into a tensor of so many elements, by the operating system's randomness; at most SAMPLE of them."""
    wanted = min(SAMPLE, elements)
    # Of 63 bits: no index is likelier than another by more than 1 in 2^63 / elements.
    drawn = torch.frombuffer(bytearray(os.urandom(8 * wanted)), dtype=torch.int64) if wanted else torch.empty(0).long()
    return (drawn & 0x7FFF_FFFF_FFFF_FFFF) % max(1, elements)


def _check_done(answer: wire.FromHost, seq: int, what: str) -> None:
    if not isinstance(answer, wire.Done | wire.Failed) or answer.seq != seq:
        raise Tampered(f"The module host gave an answer to {what} that was not asked for.")
    if isinstance(answer, wire.Failed):
        raise ContributedError(answer.sentence, answer.error, answer.traceback)
