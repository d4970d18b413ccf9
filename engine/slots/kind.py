"""What a kind of slot is: all that the judge and the module host know about it.

The judge is generic over kinds. It asks a `SlotKind` for cases, inputs, expected outputs and tolerances, and drives an
implementation through a `Runner`. The trusted side of a kind (`cases` ... `proxy`) runs in the judge. The other side
(`driver`) runs in the module host beside contributor code, and is told nothing but the inputs of the call at hand.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from engine.slots.header import Header
from engine.slots.source import Source

Scalar = int | float | str | bool | None
Suite = Literal["unit", "performance"]
Access = Literal["private", "read", "write"]


@dataclass(frozen=True)
class Environment:
    """The machine that implementations are judged on, as far as they may know it.

    `peak_bytes_per_s` and `peak_flops` are the ceilings used for physical floors; they are deliberately above what was
    ever measured, because a result under a floor is called impossible.
    """

    machine_class: str
    device: Literal["cpu", "cuda"]
    dtypes: tuple[str, ...]
    sm: int = 0
    threads: int = 1
    peak_bytes_per_s: float = 0.0
    peak_flops: float = 0.0
    last_level_cache_bytes: int = 0


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that does not exist yet; `dtype` is the name without "torch."."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.torch_dtype.itemsize

    @staticmethod
    def of(tensor: Tensor) -> "TensorSpec":
        return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@dataclass(frozen=True)
class Case:
    """One published workload: a name that people read, the dtype, and the numbers that define its shapes."""

    name: str
    dtype: str
    params: Mapping[str, Scalar]

    def __getitem__(self, key: str) -> Any:
        return self.params[key]


def digest_of(cases: Sequence[Case]) -> str:
    """A short digest of what cases are made of: what was measured on others says little of these, whatever they are called."""
    made_of = [[case.name, case.dtype, sorted(case.params.items())] for case in cases]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Held:
    """A tensor that outlives one call: a weight, a KV cache, a packed weight.

    `private` stays in the judge (an original weight); `read` is mapped read-only in the host where the device allows
    it; `write` may be changed by the host (a KV cache), and the judge compares it with what it should then be.
    """

    tensor: Tensor
    access: Access


HeldSet = dict[str, Held]
Rewrites = dict[str, tuple[Tensor, Tensor]]
"""By the name of a held tensor: places in it (int64[n], flat), and what stands there instead ([n], its dtype)."""

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width, for comparing and copying bit by bit."""
    return tensor.view(_INTEGER_OF_SIZE[tensor.dtype.itemsize])


@contextmanager
def rewritten(tensors: Mapping[str, Tensor], rewrites: Rewrites) -> Iterator[None]:
    """Rewrites held tensors, and puts back what was there."""
    kept = []
    try:
        for name, (at, values) in rewrites.items():
            flat = bits(tensors[name]).view(-1)
            kept.append((flat, at, flat[at]))
            flat[at] = bits(values)
        yield
    finally:
        for flat, at, before in kept:
            flat[at] = before


@dataclass
class Call:
    """One request to an implementation.

    `inputs` arrive with the message. `outputs` are allocated and poisoned by the judge. `params` are the numbers that the
    operation needs beside tensors. `check_state` names held tensors of access `write` that the judge compares after the call;
    `probes` are elements of them (int64, flat) that the call has to write, and that the judge reads as soon as it is acknowledged.
    `rewrites` change held tensors before the call and are undone after it. Implementations are told nothing: whoever keeps a copy of
    what is held, which memory no claim counts, computes with what is no longer true.
    """

    operation: str
    params: dict[str, Scalar]
    inputs: dict[str, Tensor]
    outputs: dict[str, TensorSpec]
    check_state: tuple[str, ...] = ()
    probes: dict[str, Tensor] = field(default_factory=dict)
    rewrites: Rewrites = field(default_factory=dict)
    parts: dict[int, Tensor] = field(default_factory=dict)
    """Which of what may change the rewrites change: for the kind that drew the call."""
    looked_at: tuple[int, ...] = ()
    """Layers whose outputs are compared, drawn from the seed, where comparing those of all would take too long; none named: all."""
    recorded: bool = False
    """Whether a host records the call's work the first time, and replays it after that, as the engine does with steps that decode
    on an accelerator. Without it, what is timed of hundreds of small kernels is the Python that launches them."""


@dataclass(frozen=True)
class Preparation:
    """Work done once in a host of its own, whose named results (of the implementation's choosing) become held tensors."""

    operation: str
    params: dict[str, Scalar]
    inputs: dict[str, Tensor]
    access: Access = "read"
    """How the results are held: a packed weight is only read, a KV cache in an own layout is written to."""


@dataclass(frozen=True)
class Finding:
    """Why an output or a property is wrong: a sentence, and the first wrong element where there is one."""

    sentence: str
    output: str = ""
    index: tuple[int, ...] = ()
    expected: float | None = None
    got: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The least that any correct implementation must do: bytes read and written once, floating-point operations."""

    bytes: int
    flops: int


class Runner(Protocol):
    """How trusted code reaches an implementation: a confined host, or (in tests of the kinds) the same process."""

    def hold(self, held: HeldSet) -> dict[str, Tensor]:
        """Shares tensors with the implementation under their names, replacing earlier ones; returns the judge's views.

        `private` ones are not shared and come back as they are.
        """

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        """Runs a preparation; returns copies of its named results."""

    def run(self, call: Call) -> dict[str, Tensor]:
        """Runs a call; returns the judge's own copy of the outputs. Raises `CallFailed` with a sentence."""


class CallFailed(Exception):
    """The implementation raised, refused, died or tampered; `str(error)` is a sentence for its author."""


class Driver(Protocol):
    """The host's side of a kind: turns one message into calls on the implementation."""

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs a preparation and returns its named tensors."""

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Runs an operation and returns the named outputs; the host copies them into the judge's buffers."""


@dataclass(frozen=True)
class Property:
    """Something that must be true of every implementation beyond closeness to the reference."""

    name: str
    statement: str
    check: Callable[[Runner, Source], Finding | None]


Figures = Mapping[str, float]
"""Of one case, by name with unit."""


class SlotKind(ABC):
    """The declaration of one kind. Each method says on which side of the trust boundary it runs."""

    name: ClassVar[str]
    title: ClassVar[str]
    default: ClassVar[str]
    """Name of the implementation that the engine uses, against which a new file is measured."""
    parts_of_a_pair: ClassVar[int] = 1
    """Of how many times two fresh processes a pair is made on a CPU: more where processes differ by more than calls do, and are soon timed."""

    # -- the judge's side -------------------------------------------------------------------------------------------

    @abstractmethod
    def why_not(self, header: Header, environment: Environment) -> list[str]:
        """Reasons, as sentences, for which an implementation with this header cannot be judged here; else an empty list."""

    @abstractmethod
    def cases(self, suite: Suite, header: Header, environment: Environment) -> Sequence[Case]:
        """The published cases of a suite that this header claims to support."""

    @abstractmethod
    def vary(self, case: Case, source: Source) -> Case:
        """The case as one attempt sees it: lengths, layouts and distributions drawn around the published workload."""

    @abstractmethod
    def held(self, case: Case, source: Source) -> HeldSet:
        """The tensors that outlive a call."""

    def preparation(self, case: Case, held: HeldSet) -> Preparation | None:
        """What is to be prepared in a host of its own before calls are made, if anything."""
        return None

    def settle(self, case: Case, header: Header, held: HeldSet, runner: Runner) -> tuple[HeldSet, Finding | None]:
        """Checks what was prepared, through a fresh host that holds only that; returns further private tensors."""
        return {}, None

    def other(self, case: Case, held: HeldSet, source: Source) -> HeldSet | None:
        """Like `held`, a little different, to be prepared and settled as well: where timed calls take their `rewrites` from."""
        return None

    def parts(self, case: Case, held: HeldSet, other: HeldSet, runner: Runner) -> HeldSet:
        """What of two prepared and settled sets differs, as private tensors for `draw`. The runner holds `other`."""
        return {}

    @abstractmethod
    def draw(self, case: Case, held: HeldSet, source: Source) -> Call:
        """A call with fresh inputs."""

    def followed(self, call: Call, outputs: Mapping[str, Tensor]) -> Call:
        """The call with what its later steps took from earlier ones in place: `outputs` are what an implementation gave.

        Calls that hold all of their inputs are returned as they are. `expected` and `plain` take no others: so each step is compared
        given what came before, and errors do not add up.
        """
        return call

    def excerpt(self, call: Call, outputs: Mapping[str, Tensor], source: Source) -> tuple[Call, dict[str, Tensor]]:
        """A call that is not recorded, and of `outputs`, which a replay gave, what it must give but for a step's rounding.

        The same call, where later steps take what earlier ones gave with what they took; or such a step alone, drawn from the source.
        """
        return replace(self.followed(call, outputs), recorded=False), dict(outputs)

    def ways(self, call: Call) -> list[Call]:
        """The same call in each of the ways in which a module may be called, all with the same result."""
        return [call]

    @abstractmethod
    def expected(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """What the reference computes for a call that holds all of its inputs, accumulated in float32 or better, in float32.

        Includes an entry `state:NAME` for each name in `call.check_state`.
        """

    @abstractmethod
    def plain(self, case: Case, held: HeldSet, call: Call) -> dict[str, Tensor]:
        """What the plain path in the case's own dtype computes: its error is the yardstick of class E."""

    @abstractmethod
    def compare(
        self,
        case: Case,
        header: Header,
        got: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        plain: Mapping[str, Tensor] | None,
    ) -> Finding | None:
        """None where `got` is right for the declared class. Without `plain` (timed calls) a fixed bound per dtype holds."""

    @abstractmethod
    def properties(self, header: Header, environment: Environment) -> Sequence[Property]:
        """What the unit suite checks beside the matrix of cases."""

    @abstractmethod
    def work(self, case: Case, held: HeldSet, call: Call) -> Work:
        """The floor of the call on any machine."""

    def judged(
        self, case: Case, header: Header, held: HeldSet, runner: Runner, call: Call, timed: bool = False
    ) -> Finding | None:
        """Makes a call and compares what came with the definition. Raises what the runner raises.

        `timed` compares as timed calls are compared, without the plain path.
        """
        got = runner.run(call)
        call = self.followed(call, got)
        plain = None if timed else self.plain(case, held, call)
        return self.compare(case, header, got, self.expected(case, held, call), plain)

    def figures(self, case: Case, held: HeldSet) -> dict[str, float]:
        """Figures for display that follow from what was prepared (bits per weight), by name with unit."""
        return {}

    def figures_of_model(self, proxy: Any) -> dict[str, float]:
        """Figures of what `proxy` stored for the quality model, under the names that `figures` gives them. Raises CallFailed."""
        return {}

    def disturbed(self, share: float, generator: torch.Generator) -> Any:
        """A module that is off by `share` at random, where quality tells how far off one is; else None."""
        return None

    def borne_out(self, figures: Mapping[str, float], as_bad_as: float) -> dict[str, float]:
        """Figures of the model, given that quality suffers as it does from a module that is off by `as_bad_as` at random."""
        return dict(figures)

    def two_faced(self, case: Case, model: Mapping[str, float], timed: Mapping[str, float]) -> Finding | None:
        """What is wrong where the figures of the quality model are better than those of what is timed, a case."""
        return None

    def may_lose(self, cases: Sequence[Case], base: Sequence[Figures], head: Sequence[Figures]) -> dict[str, float]:
        """By published case, the share of its speed that it may lose to what the kind trades in it, though a machine could tell less.

        base, head: the `figures` of each case. Cases that may lose nothing are left out.
        """
        return {}

    def beside_stored(self, case: Case) -> int | None:
        """Bytes of an accelerator's memory that a call may take beyond what base's takes, where a module claims how little its stored tensors need."""
        return None

    @abstractmethod
    def proxy(self, runner: Runner, header: Header) -> Any:
        """An object that fulfils the kind's contract inside the judge's engine and forwards every call through `runner`."""

    # -- the host's side --------------------------------------------------------------------------------------------

    @abstractmethod
    def why_malformed(self, implementation: type[Any]) -> list[str]:
        """Sentences that say what the class lacks of the contract; else an empty list. Runs in the host."""

    def recordable(self, header: Header) -> bool:
        """Whether the engine records decoding with such an implementation: calls that say `recorded` are run as they are where not. Runs in the host."""
        return True

    @abstractmethod
    def driver(self, implementation: type[Any]) -> Driver:
        """The driver of the registered class, of which it makes instances as cases need them. Runs in the host."""


def kind_named(name: str) -> SlotKind:
    """The declaration of the kind called `name`. Raises KeyError."""
    if name == "attention":
        from engine.slots.kinds.attention import ATTENTION

        return ATTENTION
    if name == "quantization":
        from engine.slots.kinds.quantization import QUANTIZATION

        return QUANTIZATION
    if name == "normalization":
        from engine.slots.kinds.normalization import NORMALIZATION

        return NORMALIZATION
    if name == "activation":
        from engine.slots.kinds.activation import ACTIVATION

        return ACTIVATION
    if name == "adapter":
        from engine.slots.kinds.adapter import ADAPTER

        return ADAPTER
    raise KeyError(f"There is no slot kind {name!r}.")
