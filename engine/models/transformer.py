"""The forward pass over packed tokens, and the weights it reads.

    ids [T] -> embed -> for each layer: norm, qkv, rotate | write, attend | o, norm, gate_up, act, down -> norm -> head

Between the bars stands the attention slot. What is left of it and right of it are two plain functions of tensors,
`before_attention` and `after_attention`, the same for every layer, so that either can be compiled once for all layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.rope import rotate
from engine.slots.attention import StepMeta
from engine.slots.quantization import Packed


class Dense:
    """The weights as they are: what a model is loaded with where no quantization is asked for."""

    def pack(self, weight: Tensor) -> Packed:
        """`weight` [rows, columns], not copied."""
        return {"weight": weight}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """`x` [T, columns] -> [T, rows]."""
        return F.linear(x, packed["weight"])

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """`ids` [T] -> [T, columns]."""
        return F.embedding(ids, packed["weight"])

    def dequant(self, packed: Packed) -> Tensor:
        """float32 [rows, columns]."""
        return packed["weight"].float()


DENSE = Dense()


@dataclass
class Linear:
    """A matrix under the name by which quantization patterns find it, in whatever form `scheme` packed it."""

    name: str
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


def before_attention(
    layer: Layer, parts: Parts, heads: Heads, x: Tensor, residual: Tensor | None, cos_sin: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x`, `residual` [T, hidden], `cos_sin` [T, head_dim] -> contiguous q [T, q, dim], k and v [T, kv, dim], residual."""
    x, residual = parts.normalization.forward(x, residual, layer.attn_norm)
    q, k, v = layer.qkv(x).view(-1, heads.q + 2 * heads.kv, heads.dim).split((heads.q, heads.kv, heads.kv), dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = parts.normalization.forward(q.reshape(-1, heads.dim), None, layer.q_norm)[0].view(-1, heads.q, heads.dim)
        k = parts.normalization.forward(k.reshape(-1, heads.dim), None, layer.k_norm)[0].view(-1, heads.kv, heads.dim)
    return rotate(q, cos_sin), rotate(k, cos_sin), v.contiguous(), residual


def after_attention(layer: Layer, parts: Parts, attended: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """`attended` [T, q, dim], `residual` [T, hidden] -> the layer's output, which is yet to be added, and the residual."""
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
            head = embed if rows is None or embed is not self.embed else self.embed.repacked(rows, self.dtype)
        return Model(self.config, embed, layers, self.norm, head)


def matrix_names(config: ModelConfig) -> list[str]:
    """The names of a model's matrices, which quantization patterns choose among. A tied head has the embedding's."""
    kinds = ("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down")
    names = ["embed", *(f"layers.{layer}.{kind}" for layer in range(config.layers) for kind in kinds)]
    return names if config.tied else [*names, "head"]


class Forward:
    """A model joined with the slots that it is to be run with; callable on one packed step.

    `attention[layer]` is the attention object of a layer, `planned` the distinct ones. Rotations are tabulated for
    `positions` positions. `beside[phase]` are the two functions beside attention.
    """

    def __init__(self, model: Model, parts: Parts, attention: Sequence[Any], positions: int) -> None:
        config = model.config
        self.model, self.parts, self.attention = model, parts, attention
        self.planned = list({id(each): each for each in attention}.values())
        self.heads = Heads(config.q_heads, config.kv_heads, config.head_dim)
        self.table = config.rope.table(config.head_dim, positions, model.device)
        plain = (before_attention, after_attention)
        self.beside: dict[str, tuple[Callable[..., Any], ...]] = {"decode": plain, "prefill": plain, "mixed": plain}

    def compile(self) -> None:
        """Compiles the functions beside attention when first called, once for all layers.

        Decode is compiled for each batch size, since one row is another kernel than many; other phases for any size.
        """
        options = {"coordinate_descent_tuning": True} if self.model.device.type == "cuda" else {}
        decode = tuple(
            torch.compile(_twin(f), dynamic=False, options=options) for f in (before_attention, after_attention)
        )
        other = tuple(torch.compile(_twin(f), options=options) for f in (before_attention, after_attention))
        self.beside = {"decode": decode, "prefill": other, "mixed": other}

    def __call__(self, ids: Tensor, meta: StepMeta, kv: Sequence[Tensor]) -> Tensor:
        """`ids` [T] -> hidden states [T, hidden] after the last norm. The caller has called `plan(meta)`."""
        parts, heads = self.parts, self.heads
        before, after = self.beside[meta.phase]
        cos_sin = self.table[meta.positions]
        x: Tensor = self.model.embed.embed(ids)
        residual: Tensor | None = None
        for layer, attention, cache in zip(self.model.layers, self.attention, kv, strict=True):
            q, k, v, residual = before(layer, parts, heads, x, residual, cos_sin)
            attention.write(k, v, cache, meta)
            attended = attention.forward(q, k, v, cache, meta)
            x, residual = after(layer, parts, attended, residual)
        hidden: Tensor = parts.normalization.forward(x, residual, self.model.norm)[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden` [n, hidden] -> float32 [n, vocab]."""
        return self.model.head(hidden).float()


def _twin(function: Any) -> Any:
    """A copy with a code object of its own: torch.compile keeps what it compiled per code object, and mixing fixed with
    free sizes there would let whichever came first serve both."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
