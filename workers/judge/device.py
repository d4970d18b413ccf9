"""The judge's side of a module host on the accelerator.

Memory of the accelerator cannot be shared read-only: a host can make its mapping writable. So each call's inputs are copied into
a standing buffer while the clock runs, from a private copy that no host can map; nothing is known of them before. What a copy
costs is measured while no host is alive and taken off, the same for every host; a host that slows the copy down only pays for it.

Kernels of two processes never run at once, and the change from one to the other takes about 0.1 ms (measured on an H100). A call
costs two such changes, whatever does the copying: copy engines are slower here than kernels, both to refill and to sample. They have
the clock running, or work could go on behind an early answer; what a call without work takes with a host of the base is taken off, the
same for both sides.
"""

import os
import secrets
import select
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from engine.slots.kind import Call, CallFailed, HeldSet, TensorSpec, bits, rewritten
from workers import vmm, wire
from workers.judge import clock
from workers.judge.buffers import Lendable, Pack, SharedBuffer, laid_out
from workers.judge.client import SAMPLE, Answer, HostClient, Tampered, _check_done, _new_seq
from workers.sandbox import SandboxError

# What the widest loads and cuBLAS ask for.
ALIGNMENT = 256
WORD = 8
SPIN_SECONDS = 0.02
REFILL_ROUNDS = 15
LOOKS_AT_HELD = 64
EMPTY_CALLS = 40
# A quarter more than was ever seen, and of a call at most this share: who makes base's empty calls longer would have everybody's ratios exaggerated.
LONGEST_BESIDE_SECONDS = 0.0009
BESIDE_SHARE = 1 / 8
LEAST_LEFT = 1 / 4
COMPARED_AT_ONCE = 1 << 24


class DeviceBuffer:
    """Memory of the accelerator that the judge owns and lends to a host."""

    def __init__(self, nbytes: int, writable: bool) -> None:
        self.number = next(SharedBuffer._numbers)
        self.writable = writable
        self.fd = -1
        try:
            mapping, self.fd = vmm.make(nbytes)
        except vmm.DeviceMemoryError as error:
            raise SandboxError(f"The accelerator has no {nbytes:,} bytes left to lend to a host: {error}") from None
        self.nbytes = mapping.nbytes
        self.bytes = mapping.bytes()
        """uint8[nbytes]"""

    def describe(self) -> wire.Buffer:
        return wire.Buffer(self.number, self.nbytes, self.writable, "cuda")

    def tensor(self, offset: int, spec: TensorSpec) -> Tensor:
        """The judge's own view of a region."""
        return region_of(self.bytes, offset, spec)

    def close(self) -> None:
        """Gives up the descriptor; the memory goes when the last mapping does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


class DevicePack(Pack):
    """Named tensors laid out in one shared buffer on the accelerator."""

    buffer_type = DeviceBuffer
    alignment = ALIGNMENT


def region_of(whole: Tensor, offset: int, spec: TensorSpec) -> Tensor:
    """The tensor at `offset` of uint8[...] on the accelerator."""
    if spec.nbytes == 0:
        return torch.empty(spec.shape, dtype=spec.torch_dtype, device="cuda")
    return whole[offset : offset + spec.nbytes].view(spec.torch_dtype).view(spec.shape)


def refill(target: Tensor, staged: Tensor) -> None:
    """Copies, and returns when the copy is done."""
    target.copy_(staged)
    torch.cuda.current_stream().synchronize()


class Refills:
    """Seconds that a copy of so many bytes takes on the accelerator, launch and wait included, when nobody else uses it."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def learn(self, inputs: dict[str, Tensor]) -> float:
        """Measures it for calls with inputs of these sizes. No host may be alive: it could slow the copy down and gain by that."""
        _, nbytes = laid_out({name: TensorSpec.of(tensor) for name, tensor in inputs.items()}, ALIGNMENT)
        if nbytes not in self.seconds:
            source = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
            target = torch.zeros_like(source)
            taken = []
            for _ in range(REFILL_ROUNDS):
                torch.cuda.synchronize()
                started = time.perf_counter_ns()
                refill(target, source)
                taken.append((time.perf_counter_ns() - started) / 1e9)
            self.seconds[nbytes] = statistics.median(taken)
        return self.seconds[nbytes]


def beside(empty: float, looks: Sequence[float], seconds: float) -> float:
    """What is taken off calls of a case: seconds of an empty one without its look, and of the shortest look at this case's sample; `seconds`: base's call."""
    return min(empty + min(looks), LONGEST_BESIDE_SECONDS, BESIDE_SHARE * seconds)


def taken_off(called: float, beside: float) -> float:
    """Seconds of a call's work. Of a call far shorter than base's, what it costs beside its work is most: a share is left."""
    return max(called - beside, LEAST_LEFT * called)


def put_back(seconds: float, beside: float) -> float:
    """The inverse of `taken_off`."""
    return min(seconds + beside, seconds / LEAST_LEFT)


def empty_call() -> Call:
    """A call without work."""
    x = torch.zeros(64, device="cuda")
    return Call(wire.NOTHING, {}, {"x": x}, {"x": TensorSpec.of(x)})


@dataclass
class _Ready:
    """A call whose inputs lie in private memory, laid out as the host will find them."""

    call: Call
    seq: int
    message: bytes
    staged: Tensor
    inputs: DeviceBuffer
    outputs: DeviceBuffer
    offsets: dict[str, int]
    nbytes: int
    """Where each output lies in the output buffer, and the bytes of all."""
    words: Tensor
    """Secret places in the output buffer, in words of eight bytes: SAMPLE or fewer for each output, one output after the other."""
    counts: dict[str, int]
    probes: dict[str, tuple[Tensor, Tensor]]
    """By name, held memory as integers, flat, and the elements of it that are read at once."""


@dataclass
class DeviceClient(HostClient):
    """A HostClient whose buffers lie on the accelerator."""

    device: ClassVar[Literal["cpu", "cuda"]] = "cuda"
    pack_type: ClassVar[type[Pack]] = DevicePack
    refills: Refills = field(default_factory=Refills)
    last_refill_seconds: float = 0.0
    last_look_seconds: float = 0.0
    """What the last call's refill, and reading its sample, took with this host alive."""
    beside_seconds: float = 0.0
    """What is taken off every call for what it costs beside its work."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._arenas: dict[str, DeviceBuffer] = {}
        self._tails: dict[str, tuple[Tensor, Tensor]] = {}
        self._originals: dict[str, Tensor] = {}
        self._looks = LOOKS_AT_HELD
        self._had = 0
        self.least: dict[str, int] = {}
        """Bytes that the standing buffers for inputs and outputs have at least: one that is outgrown stays mapped in the host, and counts as taken."""
        self._answered = select.poll()
        self._answered.register(self.sock, select.POLLIN | select.POLLRDHUP)

    def close(self) -> None:
        super().close()
        self._arenas.clear()
        self._tails.clear()
        self._originals.clear()

    def load(self, path: str, threads: int, timeout: float) -> None:
        """Has the host import the slot file. What others have of the accelerator's memory is counted before: until then the host has none."""
        self._had = _bytes_of_others()
        super().load(path, threads, timeout)

    def taken(self) -> int:
        """Bytes of the accelerator's memory that the host has, beside what was lent to it: its context, and what it has taken since it was loaded.

        By the driver's count of the whole device: no allocator of the host's own hides anything from it. What other programs take is counted, too, and
        what the judge's kernels do when they run for the first time.
        """
        return _bytes_of_others() - self._had

    def check_lent(self, originals: Mapping[str, HeldSet]) -> None:
        """Whether all that was lent by name, and what was marked, is still what it was. Raises CallFailed.

        A host can write to it: what lies there for other cases is memory that nobody else counts.
        """
        for key, packs in self._shared.items():
            for pack in packs:
                for name, view in pack.views.items():
                    held = originals[key][name]
                    if held.access == "read" and not _same(bits(view), bits(held.tensor)):
                        raise CallFailed(
                            f"The module wrote to {name!r}, which is held for {key}; inputs are read-only."
                        )
        for purpose, (tail, mark) in self._tails.items():
            if not _same(tail, mark):
                raise CallFailed(f"The module wrote to the memory for {purpose} beyond what a call has there.")

    def mark_tails(self, used: Mapping[str, int]) -> None:
        """Fills what lies in the standing buffers beyond a case's calls, which need `used` bytes of them, with a secret: it is lent, too."""
        for purpose, arena in self._arenas.items():
            mark = torch.tensor(secrets.randbits(63), device="cuda")
            tail = arena.bytes[used[purpose] :].view(torch.int64)
            tail.fill_(mark)
            self._tails[purpose] = tail, mark

    def tidy(self) -> None:
        """Has the host give back what it only keeps for later; what it does not counts as taken."""
        hold = wire.Hold([], [], give_back=True)
        self._ask_to_hold(hold, [], time.monotonic() + self.call_timeout)

    def _written(self) -> None:
        torch.cuda.synchronize()

    def hold(self, held: HeldSet, key: str = "") -> dict[str, Tensor]:
        """Shares copies; see engine.slots.kind.Runner."""
        views = super().hold(held, key)
        self._written()
        for name, item in held.items():
            self._originals.pop(name, None)
            if item.access == "read":
                self._originals[name] = item.tensor
        return views

    def run(self, call: Call) -> dict[str, Tensor]:
        """Runs a call and returns the judge's copy of its outputs. Raises CallFailed where a held tensor of access `read` changed.

        For that it looks only after a host's first calls: a model's weights are many, and who changes them changes the outputs.
        """
        outputs = super().run(call)
        if self._looks == 0:
            return outputs
        self._looks -= 1
        for name, original in self._originals.items():
            if name in self._held and not torch.equal(bits(self._held[name].views[name]), bits(original).cuda()):
                raise CallFailed(f"The implementation wrote to its input {name!r}.")
        return outputs

    def ready(self, call: Call) -> _Ready:  # type: ignore[override]
        """Copies the inputs of a call to private memory and encodes its message; the host learns nothing yet."""
        specs = {name: TensorSpec.of(tensor) for name, tensor in call.inputs.items()}
        places, nbytes = laid_out(specs, ALIGNMENT)
        staged = torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
        for name, tensor in call.inputs.items():
            region_of(staged, places[name], specs[name]).copy_(tensor)
        offsets, size = laid_out(call.outputs, ALIGNMENT)
        inputs, outputs = self._arena("inputs", nbytes), self._arena("outputs", size)
        seq = _new_seq()
        message = wire.Run(
            seq,
            call.operation,
            call.params,
            [],
            [_region(name, inputs, places[name], spec) for name, spec in specs.items()],
            [_region(name, outputs, offsets[name], spec) for name, spec in call.outputs.items()],
            record=call.recorded,
        )
        generator = torch.Generator().manual_seed(secrets.randbits(63))
        words, counts = [], {}
        for name, spec in call.outputs.items():
            available = max(1, spec.nbytes // WORD)
            counts[name] = min(SAMPLE, available)
            words.append(torch.randint(available, (counts[name],), generator=generator) + offsets[name] // WORD)
        probes = {n: (bits(self._held[n].views[n]).view(-1), probe.cuda()) for n, probe in call.probes.items()}
        return _Ready(
            call=call,
            seq=seq,
            message=wire.encode(message),
            staged=staged,
            inputs=inputs,
            outputs=outputs,
            offsets=offsets,
            nbytes=size,
            words=torch.cat(words).cuda(),
            counts=counts,
            probes=probes,
        )

    def timed(self, ready: _Ready, keep: bool = True) -> Answer:  # type: ignore[override]
        """Makes a call with the clock running from before its inputs are copied until a secret sample of the output is read.

        `Answer.seconds` is that, less what the copy takes on an idle accelerator and less `beside_seconds`. Without `keep` the outputs are not kept: the
        answer holds none. Raises what HostClient.timed raises, and CallFailed where the inputs were written to.
        """
        what = f"'{ready.call.operation}'"
        deadline = time.monotonic() + self.call_timeout
        for name, spec in ready.call.outputs.items():
            self.poison.fill(ready.outputs.tensor(ready.offsets[name], spec))
        nbytes = ready.staged.numel()
        target = ready.inputs.bytes[:nbytes]
        memory = ready.outputs.bytes.view(torch.int64)
        torch.cuda.synchronize()
        # The host's process is awake when the clock starts: waking up takes as long as a short call.
        self.wake(deadline, what)
        self._expect_silence()
        self._wait_until(deadline, what)
        # As late as can be: what is rewritten is seen by whoever looks.
        with rewritten(self._rewritable(ready.call), ready.call.rewrites):
            torch.cuda.synchronize()
            return self._clocked_here(ready, keep, target, memory)

    def empty_seconds(self) -> float:
        """Seconds of a call without work, but for the look at its sample, which depends on what is looked at: the median of some."""
        call, taken = empty_call(), []
        for _ in range(EMPTY_CALLS):
            answer = self.timed(self.ready(call), False)
            taken.append(answer.seconds + self.beside_seconds - self.last_look_seconds)
        return statistics.median(taken)

    def wake(self, deadline: float | None = None, what: str = "an empty request") -> None:
        """Has the host answer a request that asks for nothing; it stays awake for a moment after that."""
        self._ask(wire.Hold([], []), [], 0, deadline or time.monotonic() + self.call_timeout, what)

    def again(self) -> None:
        """Not for an accelerator, whose processes take no turns."""
        raise NotImplementedError

    def _clocked_here(self, ready: _Ready, keep: bool, target: Tensor, memory: Tensor) -> Answer:
        what, nbytes = f"'{ready.call.operation}'", ready.staged.numel()
        started = time.perf_counter_ns()
        refill(target, ready.staged)
        refilled = time.perf_counter_ns()
        self._send_encoded(ready.message, [])
        self._spin()
        answer = self._next_answer(what)
        answered = time.perf_counter_ns()
        seen = memory[ready.words].cpu()
        written = {name: state[probe].cpu() for name, (state, probe) in ready.probes.items()}
        ended = time.perf_counter_ns()

        pending = (ended - started) / 1e9
        self.last_refill_seconds = (refilled - started) / 1e9
        self.last_look_seconds = (ended - answered) / 1e9
        called = max(pending - self.refills.seconds.get(nbytes, 0.0), 1e-9)
        seconds = taken_off(called, self.beside_seconds)
        self.calls_seconds += pending
        clock.advance(seconds)
        _check_done(answer, ready.seq, what)
        outputs = {}
        if keep:
            # The sample is compared with the copy itself, which no host can reach.
            copy = ready.outputs.bytes[: max(ready.nbytes, WORD)].clone()
            memory = copy.view(torch.int64)
            outputs = {n: region_of(copy, ready.offsets[n], spec) for n, spec in ready.call.outputs.items()}
            for name in ready.call.check_state:
                outputs[f"state:{name}"] = self._held[name].views[name].clone()
        self._check_sample(ready, seen, memory[ready.words].cpu())
        for name, (state, probe) in ready.probes.items():
            if not torch.equal(state[probe].cpu(), written[name]):
                raise Tampered(f"{name!r} was written to after the call was acknowledged.")
        if not torch.equal(target.view(torch.int64), ready.staged.view(torch.int64)):
            raise CallFailed("The implementation wrote to one of its inputs; inputs are read-only.")
        return Answer(seconds, outputs)

    def _check_sample(self, ready: _Ready, seen: Tensor, later: Tensor) -> None:
        """Compares what was read at once with what it should have been, and with the outputs as they are now."""
        at = 0
        for name, count in ready.counts.items():
            dtype = ready.call.outputs[name].torch_dtype
            words = seen[at : at + count]
            if dtype.is_floating_point:
                # An output of less than a word shares it with padding.
                elements = words.view(dtype)[: ready.call.outputs[name].nbytes // dtype.itemsize]
                unwritten = self.poison.count(elements)
                if unwritten:
                    raise Tampered(
                        f"The call was acknowledged before {name!r} was complete: {unwritten} of {len(elements)} elements that "
                        "the judge read at once were still unwritten."
                    )
            if not torch.equal(words, later[at : at + count]):
                raise Tampered(f"{name!r} changed after the call was acknowledged.")
            at += count

    def _arena(self, purpose: str, nbytes: int) -> DeviceBuffer:
        """The standing buffer for inputs or outputs; a larger one is shared where this call is the first that needs it."""
        nbytes = max(nbytes, self.least.get(purpose, 0))
        arena = self._arenas.get(purpose)
        if arena is None or arena.nbytes < nbytes:
            pack = _Whole(DeviceBuffer(nbytes, writable=True))
            self._share(pack, [], time.monotonic() + self.call_timeout)  # type: ignore[arg-type]
            arena = self._arenas[purpose] = pack.buffer
        return arena

    def _spin(self) -> None:
        """Waits for the answer without sleeping for a while: waking up takes as long as a short call."""
        end = time.perf_counter() + SPIN_SECONDS
        while not self._answered.poll(0) and time.perf_counter() < end:
            pass


def _bytes_of_others() -> int:
    """Of the accelerator's memory, what is neither free nor this process's: every other process's, and contexts."""
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved() - vmm.held_bytes()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, a part at a time: there may be little memory left. `other` may be a single value."""
    flat, others = one.reshape(-1), other.to(one.device).reshape(-1)
    found = torch.ones((), dtype=torch.bool, device=one.device)
    for start in range(0, flat.numel(), COMPARED_AT_ONCE):
        part = slice(start, start + COMPARED_AT_ONCE)
        found &= (flat[part] == (others if others.numel() == 1 else others[part])).all()
    return bool(found)


def arenas_of(call: Call) -> dict[str, int]:
    """Bytes that a call's inputs and outputs need, as `DeviceClient.least`."""
    inputs = {name: TensorSpec.of(tensor) for name, tensor in call.inputs.items()}
    return {
        purpose: laid_out(specs, ALIGNMENT)[1] for purpose, specs in (("inputs", inputs), ("outputs", call.outputs))
    }


@dataclass
class _Whole:
    """A buffer without a layout of its own."""

    buffer: DeviceBuffer


def _region(name: str, buffer: Lendable, offset: int, spec: TensorSpec) -> wire.Region:
    return wire.Region(name, buffer.number, offset, spec.shape, spec.dtype)  # type: ignore[arg-type]
