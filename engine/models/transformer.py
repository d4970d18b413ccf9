"""The forward pass over packed tokens, and the weights it reads.

    ids [T] -> embed -> for each layer: norm, qkv, rotate | write, attend | o, norm, gate_up, act, down -> norm -> head

Between the bars stands the attention slot. What lies between two of them is one plain function of tensors, `cross`, the
same for every layer, so that it can be compiled once for all; `enter` comes before the first, `leave` after the last.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.ahead import Ahead
from engine.models import kernels
from engine.models.config import ModelConfig
from engine.models.rope import as_matrix, rotate
from engine.processor import processor
from engine.slots.attention import StepMeta
from engine.slots.quantization import Packed


class Dense:
    """The weights as they are: what a model is loaded with where no quantization is asked for."""

    def pack(self, weight: Tensor) -> Packed:
        """`weight` [rows, columns], not copied."""
        return {"weight": weight}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """`x` [T, columns] -> [T, rows]."""
        weight = packed["weight"]
        if x.shape[0] == 1 and kernels.usable(x):
            return kernels.multiply_row(x, weight)
        if x.shape[0] == 1 and x.device.type == "cpu":
            if torch.compiler.is_compiling():
                # Compiled to one pass over the weights in order; library kernels for one row reach a quarter of its speed.
                return (weight * x).sum(-1)[None]
            if x.dtype == torch.float32:
                return multiply_row(x, weight)
        return F.linear(x, weight)

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """`ids` [T] -> [T, columns]."""
        return F.embedding(ids, packed["weight"])

    def dequant(self, packed: Packed) -> Tensor:
        """float32 [rows, columns]."""
        return packed["weight"].float()


MKL = torch.backends.mkl.is_available()
MKL_AT_HOME = MKL and processor("vendor_id") == "GenuineIntel"
"""Whether MKL runs on a processor of its own vendor, where it is fastest."""
SHARE_ROWS = 64
"""Rows below which a thread costs more than it takes over."""


def multiply_row(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [1, columns] times the transposed `weight` [rows, columns], float32 on the CPU: [1, rows].

    On processors of its own vendor MKL reads the weights as fast as memory gives them. On others it multiplies one row in one thread, and
    the shorter the row the slower (8 to 13 GB/s of weights); as a batch, each thread takes its share of the weight's rows. With the
    weights as the left factor it goes through them in their order: twice as fast there as from the right, and half as fast as the library on
    an Intel (the last table of benchmarks/engine_cpu.py). Other libraries go through a batch one by one.
    """
    return by_threads(x, weight) if MKL and not MKL_AT_HOME else F.linear(x, weight)


def by_threads(x: Tensor, weight: Tensor) -> Tensor:
    """The product of `multiply_row`, each thread's share of the rows as one of a batch."""
    rows, columns = weight.shape
    shares = _shares(rows, torch.get_num_threads())
    if shares == 1:
        return F.linear(x, weight)
    parts = weight.view(shares, rows // shares, columns)
    return torch.bmm(parts, x.t().expand(shares, columns, 1)).view(1, rows)


@lru_cache(maxsize=256)
def _shares(rows: int, threads: int) -> int:
    """Into how many equal shares of at least `SHARE_ROWS` rows that many threads can divide them."""
    most = max(1, min(threads, rows // SHARE_ROWS))
    return next(shares for shares in range(most, 0, -1) if rows % shares == 0)


DENSE = Dense()


@dataclass
class Linear:
    """A matrix under the name by which quantization patterns find it, in whatever form `scheme` packed it."""

    name: str = field(compare=False)
    packed: Packed
    bias: Tensor | None = None
    scheme: Any = DENSE

    def __call__(self, x: Tensor) -> Tensor:
        """`x` [T, columns] -> [T, rows]."""
        y: Tensor = self.scheme.linear(x, self.packed)
        return y if self.bias is None else y + self.bias

    def embed(self, ids: Tensor) -> Tensor:
        """`ids` [T] -> rows [T, columns]."""
        rows: Tensor = self.scheme.embedding(ids, self.packed)
        return rows

    def repacked(self, scheme: Any, dtype: torch.dtype) -> "Linear":
        """The same matrix packed by `scheme` for activations of `dtype`."""
        whole = self.packed["weight"] if isinstance(self.scheme, Dense) else self.scheme.dequant(self.packed).to(dtype)
        return replace(self, scheme=scheme, packed=scheme.pack(whole))


@dataclass
class Layer:
    """The weights of one layer. `qkv` [(q_heads + 2 kv_heads) head_dim, hidden], `gate_up` [2 intermediate, hidden]."""

    attn_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Parts(NamedTuple):
    """The slots that the forward pass calls beside attention and quantization."""

    normalization: Any
    activation: Any


class Heads(NamedTuple):
    """Head counts and head dimension."""

    q: int
    kv: int
    dim: int


QKV = tuple[Tensor, Tensor, Tensor, Tensor]


def enter(layer: Layer, parts: Parts, heads: Heads, x: Tensor, cos_sin: Tensor) -> QKV:
    """Embedded tokens `x` [T, hidden], `cos_sin` [T, dim] -> contiguous q [T, q, dim], k and v [T, kv, dim], residual."""
    return _attention_inputs(layer, parts, heads, x, None, cos_sin)


def cross(
    layer: Layer, following: Layer, parts: Parts, heads: Heads, attended: Tensor, residual: Tensor, cos_sin: Tensor
) -> QKV:
    """From what attention of `layer` gave, [T, q, dim], to what that of the `following` layer takes (see `enter`)."""
    x, residual = _after_attention(layer, parts, attended, residual)
    return _attention_inputs(following, parts, heads, x, residual, cos_sin)


def leave(layer: Layer, parts: Parts, norm: Tensor, attended: Tensor, residual: Tensor) -> Tensor:
    """From what attention of the last layer gave to hidden states [T, hidden] after the last norm."""
    x, residual = _after_attention(layer, parts, attended, residual)
    hidden: Tensor = parts.normalization.forward(x, residual, norm)[0]
    return hidden


def score(head: Linear, hidden: Tensor) -> Tensor:
    """`hidden` [n, hidden] -> logits, float32 [n, vocab]."""
    return head(hidden).float()


def _attention_inputs(
    layer: Layer, parts: Parts, heads: Heads, x: Tensor, residual: Tensor | None, cos_sin: Tensor
) -> QKV:
    x, residual = parts.normalization.forward(x, residual, layer.attn_norm)
    qkv = layer.qkv(x)
    if layer.q_norm is None and kernels.usable(qkv):
        return *kernels.rotated_qkv(qkv, cos_sin, heads.q, heads.kv), residual
    whole = qkv.view(-1, heads.q + 2 * heads.kv, heads.dim)
    if layer.q_norm is None and len(whole) == 1:
        # Rotated together in half as many operations: of one token, a range of heads is contiguous.
        both, v = whole.split_with_sizes((heads.q + heads.kv, heads.kv), dim=1)
        q, k = rotate(both, cos_sin).split_with_sizes((heads.q, heads.kv), dim=1)
        return q, k, v, residual
    q, k, v = whole.split((heads.q, heads.kv, heads.kv), dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = parts.normalization.forward(q.reshape(-1, heads.dim), None, layer.q_norm)[0].view(-1, heads.q, heads.dim)
        k = parts.normalization.forward(k.reshape(-1, heads.dim), None, layer.k_norm)[0].view(-1, heads.kv, heads.dim)
    return rotate(q, cos_sin), rotate(k, cos_sin), v.contiguous(), residual


def _after_attention(layer: Layer, parts: Parts, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    x, residual = parts.normalization.forward(layer.o(attended.flatten(1)), residual, layer.mlp_norm)
    return layer.down(parts.activation.forward(layer.gate_up(x))), residual


class Model:
    """Weights and configuration. Holds no state of any sequence, so that engines may share one."""

    def __init__(self, config: ModelConfig, embed: Linear, layers: list[Layer], norm: Tensor, head: Linear) -> None:
        self.config = config
        self.embed = embed
        self.layers = layers
        self.norm = norm
        self.head = head

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        return self.norm.device

    def linears(self) -> Iterator[Linear]:
        """Every matrix, the embedding first and the head last (the head also where it is the embedding)."""
        yield self.embed
        for layer in self.layers:
            yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
        yield self.head

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, without doubles: what to count, move or train."""
        named: dict[str, Tensor] = {}
        for linear in self.linears():
            named |= {f"{linear.name}.{key}": tensor for key, tensor in linear.packed.items()}
            if linear.bias is not None:
                named[f"{linear.name}.bias"] = linear.bias
        for index, layer in enumerate(self.layers):
            for key in ("attn_norm", "q_norm", "k_norm", "mlp_norm"):
                if getattr(layer, key) is not None:
                    named[f"layers.{index}.{key}"] = getattr(layer, key)
        named["norm"] = self.norm
        seen: set[int] = set()
        return {name: t for name, t in named.items() if not (id(t) in seen or seen.add(id(t)))}  # type: ignore[func-returns-value]

    def nbytes(self) -> int:
        """Bytes of all weights in their packed form."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def decode_nbytes(self) -> int:
        """Bytes of weights that one decode step at batch 1 reads: all but the embedding, unless that is also the head."""
        once = self.nbytes()
        return once if self.head is self.embed else once - sum(t.nbytes for t in self.embed.packed.values())

    def quantized(self, schemes: Mapping[str, Any]) -> "Model":
        """A model whose matrices are packed by `schemes` (name of a matrix -> quantization object).

        What `schemes` does not name is shared with this model, which stays as it is.
        """

        def pack(linear: Linear) -> Linear:
            scheme = schemes.get(linear.name)
            return linear if scheme is None else linear.repacked(scheme, self.dtype)

        layers = [
            replace(a, qkv=pack(a.qkv), o=pack(a.o), gate_up=pack(a.gate_up), down=pack(a.down)) for a in self.layers
        ]
        rows = schemes.get("embed")
        embed = pack(self.embed) if hasattr(rows, "embedding") else self.embed
        if self.head is not self.embed:
            head = pack(self.head)
        else:
            own = rows is not None and embed is self.embed
            head = replace(self.embed.repacked(rows, self.dtype), name="head") if own else embed
        return Model(self.config, embed, layers, self.norm, head)


def matrix_names(config: ModelConfig) -> list[str]:
    """The names of a model's matrices, which quantization patterns choose among. A tied head has the embedding's."""
    kinds = ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")
    names = ["embed", *(f"layers.{layer}.{kind}" for layer in range(config.layers) for kind in kinds)]
    return names if config.tied else [*names, "head"]


class Beside(NamedTuple):
    """The functions on both sides of attention, as written or compiled."""

    enter: Callable[..., QKV] = enter
    cross: Callable[..., QKV] = cross
    leave: Callable[..., Tensor] = leave
    score: Callable[..., Tensor] = score


EAGER = Beside()


class Forward:
    """A model joined with the slots that it is to be run with; callable on one packed step.

    `attention[layer]` is the attention object of a layer, `planned` the distinct ones. Rotations are tabulated for
    `positions` positions.
    """

    def __init__(self, model: Model, parts: Parts, attention: Sequence[Any], positions: int) -> None:
        config = model.config
        self.model, self.parts, self.attention = model, parts, attention
        self.planned = list({id(each): each for each in attention}.values())
        self.heads = Heads(config.q_heads, config.kv_heads, config.head_dim)
        self.table = config.rope.table(config.head_dim, positions, model.device)
        self.fixed = self.free = EAGER

    def compile(self) -> None:
        """Compiles the functions beside attention when they are first called, once for all layers.

        `fixed` steps are compiled for their number of tokens, since one row is another kernel than many, on a CPU ahead of time
        (engine.ahead); others for any.
        """
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        options: dict[str, Any] = {"coordinate_descent_tuning": True} if self.model.device.type == "cuda" else {}
        if self.model.device.type == "cpu":
            self.fixed = Beside(*map(Ahead, Beside()))
        else:
            self.fixed = Beside(*(torch.compile(_twin(f), dynamic=False, options=options) for f in Beside()))
        self.free = Beside(*(torch.compile(_twin(f), options=options) for f in Beside()))

    def __call__(self, ids: Tensor, meta: StepMeta, kv: Sequence[Tensor], fixed: bool = False) -> Tensor:
        """`ids` [T] -> hidden states [T, hidden] after the last norm. The caller has called `plan(meta)`.

        fixed: whether T is one of few numbers that recur, worth compiling for.
        """
        parts, heads, layers = self.parts, self.heads, self.model.layers
        beside = self.fixed if fixed else self.free
        cos_sin = self.table.index_select(0, meta.positions)
        if beside is EAGER and len(ids) == 1 and self.table.device.type == "cpu" and self.model.dtype == torch.float32:
            cos_sin = as_matrix(cos_sin)
        q, k, v, residual = beside.enter(layers[0], parts, heads, self.model.embed.embed(ids), cos_sin)
        for index, (attention, cache) in enumerate(zip(self.attention, kv, strict=True)):
            attention.write(k, v, cache, meta)
            attended = attention.forward(q, k, v, cache, meta)
            if index + 1 < len(layers):
                q, k, v, residual = beside.cross(
                    layers[index], layers[index + 1], parts, heads, attended, residual, cos_sin
                )
        return beside.leave(layers[-1], parts, self.model.norm, attended, residual)

    def logits(self, hidden: Tensor, fixed: bool = False) -> Tensor:
        """`hidden` [n, hidden] -> float32 [n, vocab]. fixed: as above, of n."""
        return (self.fixed if fixed else self.free).score(self.model.head, hidden)


# One for each batch size of a CUDA graph and each distinct mix of quantizations among layers.
RECOMPILE_LIMIT = 64


def _twin(function: Any) -> Any:
    """A copy with a code object of its own: torch.compile keeps what it compiled per code object, and mixing fixed with
    free sizes there would let whichever came first serve both."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
