"""The judge's side of a module host: start one, share buffers, make calls, hold the clock."""

import os
import socket
import time
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from engine.slots.kind import Call, CallFailed, HeldSet, Preparation, TensorSpec
from workers import wire
from workers.judge import clock
from workers.judge.buffers import Pack, Poison, bits

SAMPLE = 256
MAX_PREPARED_BYTES = 2 * 1024**3


class Tampered(CallFailed):
    """The host did what no honest host does; `str(error)` says what."""


class HostDied(CallFailed):
    """The host ended by itself, or was ended by a limit."""


class CallTimedOut(CallFailed):
    """The host did not answer in time."""


class ContributedError(CallFailed):
    """The implementation raised. `traceback` is text for its author."""

    def __init__(self, sentence: str, error: str, traceback: str) -> None:
        super().__init__(sentence)
        self.error = error
        self.traceback = traceback


class Process(Protocol):
    """What the client needs of a confined process (workers.sandbox.HostProcess)."""

    def alive(self) -> bool: ...
    def cpu_seconds(self) -> float: ...
    def run_delay_seconds(self) -> float: ...
    def stderr_tail(self) -> str: ...
    def exit_reason(self) -> str | None: ...
    def kill(self) -> None: ...


@dataclass
class ReadyCall:
    """A call whose inputs lie in a sealed buffer and whose message is encoded, so that the clock sees only the call."""

    call: Call
    seq: int
    message: bytes
    pack: Pack
    outputs: Pack
    sample: dict[str, Tensor]


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

    def __post_init__(self) -> None:
        self._seq = 0
        self._held: dict[str, Pack] = {}
        self._outputs: dict[tuple[tuple[str, TensorSpec], ...], Pack] = {}
        self._known_buffers: set[int] = set()

    # -- life -------------------------------------------------------------------------------------------------------

    def load(self, path: str, threads: int, timeout: float) -> None:
        """Has the host import the slot file. Raises ContributedError, HostDied, CallTimedOut."""
        self._send(wire.Load(path, threads))
        answer = self._receive(timeout, "importing the file")
        if not isinstance(answer, wire.Loaded):
            raise Tampered("The module host did not answer the request to load the file.")
        self.load_seconds = answer.seconds

    def close(self) -> None:
        """Ends the host and everything it started."""
        self.process.kill()
        self.sock.close()

    def __enter__(self) -> "HostClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- engine.slots.kind.Runner -----------------------------------------------------------------------------------

    def hold(self, held: HeldSet) -> dict[str, Tensor]:
        """Shares tensors that outlive a call; see engine.slots.kind.Runner."""
        views: dict[str, Tensor] = {}
        packs: list[Pack] = []
        for name, item in held.items():
            if item.access == "private":
                views[name] = item.tensor
                continue
            pack = Pack.of({name: item.tensor}, writable=item.access == "write")
            self._held[name] = pack
            packs.append(pack)
            views[name] = pack.views[name]
        for start in range(0, len(packs), wire.MAX_FDS):
            some = packs[start : start + wire.MAX_FDS]
            self._send(
                wire.Hold([p.buffer.describe() for p in some], [r for p in some for r in p.regions]),
                [p.buffer.fd for p in some],
            )
            if not isinstance(self._receive(self.call_timeout, "mapping shared tensors"), wire.Kept):
                raise Tampered("The module host did not answer the request to map shared tensors.")
        return views

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Runs a preparation; see engine.slots.kind.Runner."""
        self._seq += 1
        pack = Pack.of(preparation.inputs)
        what = f"'{preparation.operation}'"
        self._send(
            wire.Prepare(self._seq, preparation.operation, preparation.params, [pack.buffer.describe()], pack.regions),
            [pack.buffer.fd],
        )
        answer = self._receive(self.call_timeout, what)
        if not isinstance(answer, wire.Prepared) or answer.seq != self._seq:
            raise Tampered(f"The module host gave an answer to {what} that was not asked for.")
        specs = {spec.name: TensorSpec(spec.shape, spec.dtype) for spec in answer.specs}
        total = sum(spec.nbytes for spec in specs.values())
        if len(specs) != len(answer.specs) or total > MAX_PREPARED_BYTES:
            raise CallFailed(
                f"{what} returned {len(answer.specs)} tensors of {total:,} bytes; names must differ and at most "
                f"{MAX_PREPARED_BYTES:,} bytes are taken."
            )
        outputs = Pack(specs, writable=True)
        self._seq += 1
        self._send(
            wire.Collect(self._seq, [outputs.buffer.describe()], outputs.regions),
            [outputs.buffer.fd],
        )
        self._expect_done(what)
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
        self._seq += 1
        pack = Pack.of(call.inputs)
        key = tuple(call.outputs.items())
        outputs = self._outputs.get(key)
        if outputs is None:
            outputs = self._outputs[key] = Pack(call.outputs, writable=True)
        buffers = [pack.buffer.describe()]
        message = wire.Run(
            self._seq, call.operation, call.params, buffers, pack.regions, outputs.regions, [pack.buffer.number]
        )
        sample = {}
        for name, view in outputs.views.items():
            elements = view.numel()
            sample[name] = torch.tensor(
                [int.from_bytes(os.urandom(6), "big") % elements for _ in range(min(SAMPLE, elements))],
                dtype=torch.int64,
            )
        return ReadyCall(call, self._seq, wire.encode(message), pack, outputs, sample)

    def timed(self, ready: ReadyCall) -> Answer:
        """Makes a call with the clock running from before the message is sent until a secret sample of the output is read.

        Raises Tampered where the sample still held poison or the snapshot taken afterwards differs from it: the host
        acknowledged before it had finished.
        """
        if ready.outputs.buffer.number not in self._known_buffers:
            self._share_outputs(ready.outputs)
        for view in ready.outputs.views.values():
            self.poison.fill(view)
        flats = {name: bits(view).view(-1) for name, view in ready.outputs.views.items()}
        self.sock.settimeout(self.call_timeout)
        fds = [ready.pack.buffer.fd]

        started = time.perf_counter_ns()
        wire.send_encoded(self.sock, ready.message, fds)
        answer = self._next_answer(f"'{ready.call.operation}'")
        seen = {name: flat[ready.sample[name]] for name, flat in flats.items()}
        seconds = (time.perf_counter_ns() - started) / 1e9

        self.calls_seconds += seconds
        clock.advance(seconds)
        self._check_done(answer, ready.seq, f"'{ready.call.operation}'")
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
        ready.pack.buffer.close()
        return Answer(seconds, outputs)

    def _share_outputs(self, outputs: Pack) -> None:
        self._send(wire.Hold([outputs.buffer.describe()], []), [outputs.buffer.fd])
        if not isinstance(self._receive(self.call_timeout, "mapping outputs"), wire.Kept):
            raise Tampered("The module host did not answer the request to map its outputs.")
        self._known_buffers.add(outputs.buffer.number)

    # -- messages ---------------------------------------------------------------------------------------------------

    def _send(self, message: msgspec.Struct, fds: list[int] | None = None) -> None:
        try:
            self.sock.settimeout(self.call_timeout)
            wire.send(self.sock, message, fds or [])
        except TimeoutError:
            raise CallTimedOut("The module host stopped reading its messages.") from None
        except OSError:
            raise self._died() from None

    def _next_answer(self, what: str) -> wire.FromHost:
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

    def _receive(self, timeout: float, what: str) -> wire.FromHost:
        self.sock.settimeout(timeout)
        answer = self._next_answer(what)
        if isinstance(answer, wire.Failed):
            raise ContributedError(answer.sentence, answer.error, answer.traceback)
        return answer

    def _expect_done(self, what: str) -> None:
        self._check_done(self._receive(self.call_timeout, what), self._seq, what)

    def _check_done(self, answer: wire.FromHost, seq: int, what: str) -> None:
        if isinstance(answer, wire.Failed):
            raise ContributedError(answer.sentence, answer.error, answer.traceback)
        if not isinstance(answer, wire.Done) or answer.seq != seq:
            raise Tampered(f"The module host gave an answer to {what} that was not asked for.")

    def _died(self) -> HostDied:
        deadline = time.monotonic() + 2.0
        while self.process.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        reason = self.process.exit_reason() if not self.process.alive() else "it closed its connection"
        return HostDied(f"The module host ended: {reason}.")
