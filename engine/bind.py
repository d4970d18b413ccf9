"""From the names and objects that a caller gives for slots, to the objects that the forward pass calls.

Code of a slot folder runs only where a slot is given by name or left to its default; `trusted` fills what is left out from
engine.reference, so that a caller that hands over objects (the judge does) runs none of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.transformer import Dense, Parts, matrix_names
from engine.reference.activation import swiglu
from engine.reference.attention import attention as reference_attention
from engine.reference.normalization import rms_norm
from engine.slots import registry
from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.caps import Caps, why_not
from engine.slots.header import Header
from engine.slots.kind import Environment
from engine.slots.patterns import ALIASES, assign

# The `default` of each kind (engine.slots.kind), known here without importing what the judge knows of kinds.
DEFAULTS = {"attention": "sdpa", "normalization": "plain", "activation": "plain"}
ENGINE_ROOT = Path(__file__).resolve().parent


class SlotRefused(ValueError):
    """An implementation cannot run this model here; `str(error)` holds its reasons."""


def header_of(kind: str, name: str) -> Header:
    """The header of the implementation of `kind` called `name`. Raises SlotError that lists what exists."""
    found = registry.implementations(ENGINE_ROOT, kind)
    if name not in found:
        raise registry.SlotError(
            f"There is no {kind} called {name!r}; there are: {', '.join(sorted(found)) or 'none'}."
        )
    return registry.read_header(found[name])


def implementation(
    kind: str, name: str, dtype: torch.dtype, device: torch.device, shape: AttentionShape | None = None
) -> Any:
    """The registered class. Raises SlotRefused where its header, or its kind, says that it cannot run here."""
    header = header_of(kind, name)
    reasons = why_not(header, environment(dtype, device))
    if not reasons and shape is not None:
        reasons = shape_reasons(Caps.of(header), shape)
    if reasons:
        raise SlotRefused(f"The {kind} {name!r} cannot be used: {' '.join(reasons)} Choose another, or the default.")
    return registry.load(kind, name)


def shape_reasons(caps: Caps, shape: AttentionShape) -> list[str]:
    """Why an attention with these limits cannot run layers of `shape`, as sentences."""
    reasons = []
    if caps.head_dims and shape.head_dim not in caps.head_dims:
        reasons.append(f"It is for head dimensions {list(caps.head_dims)}; this model has {shape.head_dim}.")
    if shape.window is not None and not caps.window:
        reasons.append(f"It has no sliding window; this model has one of {shape.window} tokens.")
    if caps.max_group and shape.q_heads // shape.kv_heads > caps.max_group:
        reasons.append(f"It is for at most {caps.max_group} query heads a key/value head; this model has more.")
    if set(caps.phases) != {"prefill", "decode", "mixed"}:
        reasons.append(f"It runs only {' and '.join(caps.phases)} steps; an engine needs all.")
    return reasons


def environment(dtype: torch.dtype, device: torch.device) -> Environment:
    """This machine as slots are told of it, reduced to the one dtype in use."""
    sm = 0
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        sm = 10 * major + minor
    return Environment(
        machine_class="local",
        device="cuda" if device.type == "cuda" else "cpu",
        dtypes=(str(dtype).removeprefix("torch."),),
        sm=sm,
        threads=torch.get_num_threads(),
    )


def schemes(given: Any, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The quantization object of each matrix that has one, by the matrix's name.

    `given`: None, one quantization for all matrices, or a mapping from patterns over names (engine.slots.patterns) to
    quantizations; each a name or an object. Raises ValueError for a pattern that matches nothing.
    """
    if given is None:
        return {}
    assigned = assign(matrix_names(config), given if isinstance(given, Mapping) else {"**": given}, default="")
    objects: dict[str, Any] = {}
    for name in set(assigned.values()):
        if isinstance(name, str) and name:
            objects[name] = implementation("quantization", name, dtype, device)()
    return {
        matrix: objects.get(scheme, scheme) if isinstance(scheme, str) else scheme
        for matrix, scheme in assigned.items()
        if scheme != ""
    }


def parts(
    slots: Mapping[str, Any],
    operators: Mapping[str, Any],
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Parts:
    """Normalization and activation: what `slots` gives, else what an adapter binds, else the kind's default."""

    def part(kind: str, operator: str, bound: type, *args: Any) -> Any:
        given = slots.get(kind)
        if given is None and operator in operators:
            return bound(operators[operator], *args)
        if given is None:
            given = DEFAULTS[kind]
        if isinstance(given, str):
            given = implementation(kind, given, dtype, device)
        return given(*args) if isinstance(given, type) else given

    return Parts(
        part("normalization", "rms_norm", BoundNorm, config.norm_eps), part("activation", "swiglu", BoundActivation)
    )


def attention_layers(given: Any, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> list[Any]:
    """The attention object of each layer: one instance per distinct shape of a named one, or the given object for all."""
    if given is None:
        given = DEFAULTS["attention"]
    if not isinstance(given, str | type):
        return [given] * config.layers
    shapes = [
        AttentionShape(config.q_heads, config.kv_heads, config.head_dim, config.head_dim**-0.5, window)
        for window in config.windows
    ]
    instances = {}
    for shape in dict.fromkeys(shapes):
        build = implementation("attention", given, dtype, device, shape) if isinstance(given, str) else given
        instances[shape] = build(shape)
    return [instances[shape] for shape in shapes]


def adapter_operators(given: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The operators that an adapter (name, object or None) binds here; the engine calls linear, rms_norm and swiglu.

    Raises SlotRefused where it is for other hardware.
    """
    if given is None:
        return {}
    adapter = implementation("adapter", given, dtype, device)() if isinstance(given, str) else given
    if adapter.detect() is None:
        raise SlotRefused(f"The adapter {given!r} does not recognise this machine; leave it out, or choose another.")
    return dict(adapter.operators())


class ReferenceAttention(StandardKV):
    """`engine.reference.attention` in the dtype of the queries, as an attention object."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """See `engine.slots.attention`."""
        return reference_attention(q, kv, meta, self.shape, q.dtype)


class ReferenceNorm:
    """`engine.reference.normalization` as a normalization object."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `engine.slots.normalization`."""
        y, hidden = rms_norm(x, residual, weight, self.eps)
        return y.to(x.dtype), hidden


class ReferenceActivation:
    """`engine.reference.activation` as an activation object."""

    def forward(self, gate_up: Tensor) -> Tensor:
        """See `engine.slots.activation`."""
        return swiglu(gate_up).to(gate_up.dtype)


def trusted(slots: Mapping[str, Any], eps: float) -> dict[str, Any]:
    """`slots` with the reference for each kind that is left out, so that no default is taken from a slot folder."""
    reference = {
        "attention": ReferenceAttention,
        "normalization": ReferenceNorm(eps),
        "activation": ReferenceActivation(),
    }
    adapter = slots.get("adapter")
    bound = adapter.operators() if hasattr(adapter, "operators") else {}
    for kind, operator in (("normalization", "rms_norm"), ("activation", "swiglu")):
        if operator in bound:
            del reference[kind]
    return reference | {kind: given for kind, given in slots.items() if given is not None}


class BoundLinear(Dense):
    """Unpacked weights multiplied by an adapter's operator."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def linear(self, x: Tensor, packed: Any) -> Tensor:
        """`x` [T, columns] -> [T, rows]."""
        product: Tensor = self.operator(x, packed["weight"])
        return product


class BoundNorm:
    """An adapter's rms_norm, with the residual addition before it."""

    def __init__(self, operator: Any, eps: float) -> None:
        self.operator, self.eps = operator, eps

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `engine.slots.normalization`."""
        hidden = x if residual is None else x + residual
        return self.operator(hidden, weight, self.eps), hidden


class BoundActivation:
    """An adapter's swiglu."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def forward(self, gate_up: Tensor) -> Tensor:
        """See `engine.slots.activation`."""
        y: Tensor = self.operator(gate_up)
        return y


def allows_graphs(attention: Any) -> bool:
    """Whether decode with this attention (name, object or None) can be recorded: `cuda_graph = true` in the header of a
    named one, an attribute `cuda_graph` of an object."""
    if attention is None:
        attention = DEFAULTS["attention"]
    if isinstance(attention, str):
        return Caps.of(header_of("attention", attention)).cuda_graph
    return bool(getattr(attention, "cuda_graph", False))


def untrainable(slots: Mapping[str, Any]) -> list[str]:
    """The named implementations among `slots` (and the defaults of the rest) whose headers do not say `trainable`.

    Quantization "none" keeps weights as they are, and needs not say so.
    """
    given = slots.get("quantization")
    schemes = given.values() if isinstance(given, Mapping) else [given]
    names = [(kind, slots.get(kind) or default) for kind, default in DEFAULTS.items()]
    names += [("adapter", slots.get("adapter"))]
    names += [("quantization", ALIASES.get(name, name)) for name in schemes if isinstance(name, str)]
    return [
        f"{kind} {name!r}"
        for kind, name in dict.fromkeys(each for each in names if isinstance(each[1], str))
        if name != "none" and not Caps.of(header_of(kind, name)).trainable
    ]
