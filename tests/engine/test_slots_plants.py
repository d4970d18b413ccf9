"""Wrong implementations, each wrong in one way that has happened to somebody: the unit suite must name it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.reference.attention import attention as reference
from engine.slots import registry
from engine.slots.attention import AttentionShape, StandardKV, StepMeta, step_meta
from engine.slots.kind import TensorSpec
from engine.slots.source import Source
from tests.engine.judging import findings, header

Sdpa: Any = registry.load("attention", "sdpa")
Int8: Any = registry.load("quantization", "int8wo")
PlainNorm: Any = registry.load("normalization", "plain")


class Definition(StandardKV):
    """A right attention that the wrong ones below deviate from."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        return reference(q, kv, meta, self.shape, q.dtype)


class SeesTheFuture(Sdpa):
    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        query = torch.arange(total - new, total, device=device)[:, None]
        return torch.arange(total, device=device) <= query + 1

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        outputs = []
        for b, (queries, new, total) in enumerate(zip(q.split(self.new), self.new, self.total, strict=True)):
            pages = meta.block_table[b, : -(-total // meta.block_size)]
            keys, values = kv[:, pages].flatten(1, 2)[:, :total].transpose(1, 2)
            out = functional.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=self.mask(new, total, q.device),
                scale=self.shape.scale,
                enable_gqa=True,
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)


class BlindToItself(SeesTheFuture):
    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        query = torch.arange(total - new, total, device=device)[:, None]
        # The first position would see nothing and give NaN, so it keeps itself.
        return torch.arange(total, device=device) < query.clamp(min=1)


class NoScale(Definition):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(AttentionShape(shape.q_heads, shape.kv_heads, shape.head_dim, 1.0, shape.window))


class NoWindow(Definition):
    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(AttentionShape(shape.q_heads, shape.kv_heads, shape.head_dim, shape.scale))


class WrongPage(Definition):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        table = meta.block_table.sort(-1).values
        moved = StepMeta(**{**vars(meta), "block_table": table})
        return super().forward(q, k, v, kv, moved)


class WholePages(Definition):
    """Reads a sequence's last page to its end."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        if meta.phase != "decode":
            return super().forward(q, k, v, kv, meta)
        size = meta.block_size
        longer = (meta.kv_len + size - 1) // size * size
        return super().forward(q, k, v, kv, StepMeta(**{**vars(meta), "kv_len": longer}))


class StaleCache(Definition):
    """Keeps what it gathered, by block table."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.seen: dict[tuple[int, ...], Tensor] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        key = (*meta.block_table.flatten().tolist(), *meta.kv_len.tolist())
        kept = self.seen.setdefault(key, kv.clone())
        fresh = kept.clone()
        self.write(k, v, fresh, meta)
        return super().forward(q, k, v, fresh, meta)


class WritesNothing(Definition):
    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        pass

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        copy = kv.clone()
        super().write(k, v, copy, meta)
        return super().forward(q, k, v, copy, meta)


class WritesBesides(Definition):
    """Touches the whole cache, too little for any output to show it."""

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        kv.mul_(1.000001)
        super().write(k, v, kv, meta)


class WrongGroup(Definition):
    """Spreads query heads over key/value heads the other way round."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        group = self.shape.q_heads // self.shape.kv_heads
        order = torch.arange(self.shape.q_heads).view(group, self.shape.kv_heads).t().flatten()
        return super().forward(q[:, order], k, v, kv, meta)[:, order.argsort()]


class ChangesItsInput(Definition):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        out = super().forward(q, k, v, kv, meta)
        q.mul_(2)
        return out


class Zeros(Definition):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        return torch.zeros_like(q)


class NotANumber(Definition):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        out = super().forward(q, k, v, kv, meta)
        out[-1, 0, 3] = float("nan")
        return out


class TooCoarse(Definition):
    """Computes float32 steps in bfloat16."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        return reference(q, kv, meta, self.shape, torch.bfloat16).to(q.dtype)


class CouplesSequences(Definition):
    """Rescales the last sequence by the largest value of the first."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        out = super().forward(q, k, v, kv, meta)
        if len(meta.kv_len) > 1:
            out[int(meta.cu_q[-2]) :] *= 1 + 0.02 * v[: int(meta.cu_q[1])].abs().amax()
        return out


ATTENTION_PLANTS = [
    (SeesTheFuture, "causality", "sees the future: changing token"),
    (BlindToItself, "causality", "is blind: position"),
    (NoScale, "prefill-odd-float32", "out is wrong from token"),
    (NoWindow, "window", "looks beyond its window of 11"),
    (WrongPage, "paging", "the same content on other pages"),
    (WholePages, "decode-pages-float32", "out is wrong from token"),
    (StaleCache, "stale cache", "out of date"),
    (WritesNothing, "decode-pages-float32", "The KV cache is wrong after the step"),
    (WritesBesides, "decode-pages-float32", "every other slot must stay as it was"),
    (WrongGroup, "prefill-odd-float32", "out is wrong from token"),
    (ChangesItsInput, "prefill-odd-float32", "wrote to its input 'q'"),
    (Zeros, "prefill-odd-float32", "zero everywhere"),
    (NotANumber, "prefill-odd-float32", "out holds NaN at"),
    (TooCoarse, "prefill-257-float32", "out is"),
    (CouplesSequences, "causality", "Sequences are mixed up"),
]


@pytest.mark.parametrize(
    ("plant", "where", "sentence"), ATTENTION_PLANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_wrong_attention_is_named(plant: type[Any], where: str, sentence: str) -> None:
    found = findings(header("attention"), plant)
    assert sentence.lower() in found[where].lower(), found


def test_the_definition_passes_and_so_a_plant_is_caught_for_its_own_fault() -> None:
    assert findings(header("attention"), Definition) == {}


def test_an_answer_beyond_the_declared_head_dims_must_be_right() -> None:
    class Narrow(Definition):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
            out = super().forward(q, k, v, kv, meta)
            return out if q.shape[-1] in (32, 64) else out * 0.5

    found = findings(header("attention", head_dims=[32, 64]), Narrow)
    assert set(found) == {"refusal"}
    assert "must refuse" in found["refusal"]
    assert "0.5 times what is expected" in found["refusal"]


class OwnLayout(Definition):
    """Keeps keys and values with the page dimension last."""

    def kv_spec(self, num_blocks: int, block_size: int, dtype: str) -> TensorSpec:
        return TensorSpec((2, block_size, self.shape.kv_heads, self.shape.head_dim, num_blocks), dtype)

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        pages, offsets = meta.slot_map // meta.block_size, meta.slot_map % meta.block_size
        kv.permute(0, 4, 1, 2, 3)[0, pages, offsets] = k
        kv.permute(0, 4, 1, 2, 3)[1, pages, offsets] = v

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        return super().forward(q, k, v, kv.permute(0, 4, 1, 2, 3), meta)


def test_a_cache_in_an_own_layout_is_judged_by_its_outputs() -> None:
    assert findings(header("attention", kv="own"), OwnLayout) == {}


def test_a_wrong_own_layout_is_caught() -> None:
    class Forgetful(OwnLayout):
        def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
            super().write(k, v * 1.05, kv, meta)

    found = findings(header("attention", kv="own"), Forgetful)
    assert "1.05 times what is expected" in found["prefill-odd-float32"]


class EverySecondPage(Definition):
    """Sparse: the page of the token and every second one before it."""

    def select(self, q: Tensor, k: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        page = torch.arange(meta.block_table.shape[1])
        own = (meta.positions // meta.block_size)[:, None]
        chosen = (page <= own) & ((own - page) % 2 == 0)
        return chosen[:, None].expand(-1, self.shape.q_heads, -1).contiguous()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        return reference(q, kv, meta, self.shape, q.dtype, self.select(q, k, kv, meta))


@pytest.mark.parametrize("seed", [bytes(range(32)), bytes([2] * 32), bytes([9] * 32)])
def test_sparse_attention_is_judged_under_its_own_mask(seed: bytes) -> None:
    assert findings(header("attention", "S"), EverySecondPage, source=Source(seed)) == {}


def test_sparse_attention_that_reads_other_pages_than_it_selects_is_named() -> None:
    class Dense(EverySecondPage):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
            return reference(q, kv, meta, self.shape, q.dtype)

    found = findings(header("attention", "S"), Dense)
    assert "not attention over the pages that select names" in found["decode-long-float32"]


def test_sparse_attention_that_leaves_a_token_nothing_to_read_is_named() -> None:
    class Empty(EverySecondPage):
        def select(self, q: Tensor, k: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
            chosen = super().select(q, k, kv, meta)
            chosen[-1, 1] = False
            return chosen

        def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
            return reference(q, kv, meta, self.shape, q.dtype, super().select(q, k, kv, meta))

    found = findings(header("attention", "S"), Empty)
    assert "select leaves query head 1 of token" in found["decode-long-float32"]


# -- quantization -------------------------------------------------------------------------------------------------------


class ScaleForgotten(Int8):
    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return functional.linear(x, packed["q"].to(x.dtype))


class ScaleOfTheBatch(Int8):
    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        scale = x.abs().amax().clamp(min=1e-9) / 7
        return functional.linear((x / scale).round() * scale, self.dequant(packed).to(x.dtype))


class DividesByZero(Int8):
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        scale = weight.float().abs().amax(1) / 127
        return {"q": (weight.float() / scale[:, None]).round().nan_to_num().to(torch.int8), "scale": scale}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return functional.linear(x, self.dequant(packed).to(x.dtype))

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return packed["q"].float() * (packed["scale"][:, None] / packed["scale"][:, None]) * packed["scale"][:, None]


class AbsoluteScale(Int8):
    """A scale chosen once, for weights of a usual size."""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        scale = torch.full((len(weight),), 0.004)
        return {"q": (weight.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return functional.linear(x, self.dequant(packed).to(x.dtype))


class ReadsOtherRows(Int8):
    def embedding(self, ids: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return super().embedding((ids + 1) % len(packed["q"]), packed)


class LossyButDeclaredExact(Int8):
    pass


QUANTIZATION_PLANTS = [
    (ScaleForgotten, "few-tokens-float32", "y is wrong from token 0 on"),
    (ScaleOfTheBatch, "token independence", "depends on its company"),
    (DividesByZero, "zeros", "must stay zeros"),
    (AbsoluteScale, "scale of weights", "times as large"),
    (ReadsOtherRows, "embedding-float32", "y is wrong from token"),
]


@pytest.mark.parametrize(
    ("plant", "where", "sentence"), QUANTIZATION_PLANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_wrong_quantization_is_named(plant: type[Any], where: str, sentence: str) -> None:
    found = findings(header("quantization", "Q8", embedding=True), plant)
    assert sentence in found[where], found


def test_a_lossy_weight_is_not_exact() -> None:
    found = findings(header("quantization", "E"), LossyButDeclaredExact)
    assert "class E allows 0.00%" in found["few-tokens-float32"]


def test_bits_are_counted_from_the_bytes_handed_over() -> None:
    class Hoarder(Int8):
        def pack(self, weight: Tensor) -> dict[str, Tensor]:
            return {**super().pack(weight), "original": weight.clone()}

    from engine.slots.inprocess import InProcess
    from engine.slots.kind import Held, kind_named
    from tests.engine.judging import CPU, SEED

    kind = kind_named("quantization")
    declared = header("quantization", "Q8")
    case = kind.cases("unit", declared, CPU)[0]
    bits = []
    for implementation in (Int8, Hoarder):
        held = kind.held(case, SEED.child("held"))
        preparation = kind.preparation(case, held)
        assert preparation is not None
        results = InProcess(kind, implementation).prepare(preparation)
        held.update({name: Held(value, "read") for name, value in results.items()})
        bits.append(kind.figures(case, held)["bits per weight"])
    assert bits[0] == pytest.approx(8.0, abs=0.2)
    assert bits[1] == pytest.approx(40.0, abs=0.2)


# -- normalization and activation ---------------------------------------------------------------------------------------


class NoResidual(PlainNorm):
    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = super().forward(x, None, weight)
        return y, x


class ResidualNotReturned(PlainNorm):
    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = super().forward(x, residual, weight)
        return y, x.clone()


class EpsOutsideTheRoot(PlainNorm):
    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = x if residual is None else x + residual
        wide = hidden.float()
        return (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.eps) * weight.float()).to(x.dtype), hidden


class SubtractsTheMean(PlainNorm):
    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = x if residual is None else x + residual
        y = functional.layer_norm(hidden.float(), hidden.shape[-1:], weight.float(), None, self.eps)
        return y.to(x.dtype), hidden


class NormOverTheBatch(PlainNorm):
    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = x if residual is None else x + residual
        wide = hidden.float()
        order = torch.arange(len(x))[:, None] / len(x)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps + order) * weight).to(x.dtype), hidden


NORMALIZATION_PLANTS = [
    (NoResidual, "decode-float32", "y is wrong from token"),
    (ResidualNotReturned, "decode-float32", "not x + residual rounded once"),
    (EpsOutsideTheRoot, "eps", "eps = 1e-05 belongs inside the root"),
    (SubtractsTheMean, "odd-width-float32", "y is wrong from token"),
    (NormOverTheBatch, "row independence", "Rows are not independent"),
]


@pytest.mark.parametrize(
    ("plant", "where", "sentence"), NORMALIZATION_PLANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_wrong_normalization_is_named(plant: type[Any], where: str, sentence: str) -> None:
    found = findings(header("normalization"), plant)
    assert sentence in found[where], found


class Swapped:
    def forward(self, gate_up: Tensor) -> Tensor:
        up, gate = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up


class Overflows:
    def forward(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        power = torch.exp(gate)
        return gate * power / (1 + power) * up


class Gelu:
    def forward(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.gelu(gate) * up


ACTIVATION_PLANTS = [
    (Swapped, "decode-float32", "y is wrong from token 0"),
    (Overflows, "extreme gates", "Does the exponential overflow?"),
    (Gelu, "decode-float32", "y is wrong from token 0"),
]


@pytest.mark.parametrize(
    ("plant", "where", "sentence"), ACTIVATION_PLANTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_wrong_activation_is_named(plant: type[Any], where: str, sentence: str) -> None:
    found = findings(header("activation"), plant)
    assert sentence in found[where], found


def test_an_adapter_that_binds_less_than_it_lists_is_named() -> None:
    class Boasting:
        def detect(self) -> str | None:
            return None

        def peak_bytes_per_s(self) -> float:
            return 1e10

        def peak_flops(self, dtype: str) -> float:
            return 1e11

        def operators(self) -> dict[str, Any]:
            return {"softmax": lambda x: x.softmax(0)}

    found = findings(header("adapter", operators=["softmax", "swiglu"]), Boasting)
    assert "does not bind it" in found["swiglu-odd-float32"]
    assert "softmax is wrong from row 0" in found["softmax-odd-float32"]
    assert "detect() returned None" in found["hardware"]


def test_a_class_that_lacks_methods_is_told_which() -> None:
    from engine.slots.kind import kind_named

    class Empty:
        pass

    sentences = kind_named("attention").why_malformed(Empty)
    assert "lacks kv_spec, plan, write, forward" in sentences[0]
    assert kind_named("attention").why_malformed(len)[0].startswith("@register must be put on a class")  # type: ignore[arg-type]


def test_steps_describe_where_tokens_belong() -> None:
    meta = step_meta([1, 3], [5, 3], torch.tensor([[2, 0], [1, 3]]), 4)
    assert meta.phase == "mixed"
    assert meta.slot_map.tolist() == [0, 4, 5, 6]
    assert meta.positions.tolist() == [4, 0, 1, 2]
    assert meta.cu_q.tolist() == [0, 1, 4]
    with pytest.raises(ValueError, match="too few pages"):
        step_meta([1], [9], torch.tensor([[0, 1]]), 4)
    with pytest.raises(ValueError, match="0 < new <= total"):
        step_meta([3], [2], torch.tensor([[0, 1]]), 4)
