"""What is held changes a little from call to call: a copy that an implementation keeps of it is found out, and an honest one is not."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.slots import registry
from engine.slots.caps import Caps
from engine.slots.compare import Heads, stale
from engine.slots.inprocess import judge_case
from engine.slots.kind import CallFailed, Case, bits, kind_named, rewritten
from engine.slots.kinds.attention import AttentionKind
from engine.slots.kinds.quantization import PARTS, line_of
from engine.slots.source import Source
from engine.workloads.attention import AttentionWorkload
from engine.workloads.linear import LinearWorkload
from tests.engine.judging import CPU, header

ATTACKS = Path(__file__).resolve().parents[1] / "attacks/files"
QUANTIZATION = kind_named("quantization")


def small(tokens: int = 3, weights: int = 2, outputs: int = 96) -> Case:
    workload = LinearWorkload("small", tokens, outputs, 256, weights)
    return QUANTIZATION.case(workload, "float32", "cpu", "performance")  # type: ignore[attr-defined, no-any-return]


class Int8:
    """An honest implementation, a row at a time."""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        scale = (weight.abs().amax(1) / 127).clamp_(min=1e-12)
        return {"q": (weight / scale[:, None]).round().to(torch.int8), "scale": scale}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return linear(x, self.dequant(packed))

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return packed["q"].float() * packed["scale"][:, None]


class Transposed(Int8):
    """The same with rows and columns the other way round."""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed = super().pack(weight)
        return {"q": packed["q"].T.contiguous(), "scale": packed["scale"]}

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return packed["q"].T.float() * packed["scale"][:, None]


class Entangled(Int8):
    """Every stored byte depends on every weight."""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed = super().pack(weight)
        key = torch.tensor(int(packed["q"].long().mul(torch.arange(256)).sum()) % 255 + 1).to(torch.uint8)
        return {**packed, "q": packed["q"].view(torch.uint8) ^ key, "key": key[None]}

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return (packed["q"] ^ packed["key"]).view(torch.int8).float() * packed["scale"][:, None]


class KeepsByPointer(Int8):
    """Unpacks once."""

    def __init__(self) -> None:
        self.kept: dict[Any, Tensor] = {}

    def key(self, packed: dict[str, Tensor]) -> Any:
        return packed["q"].data_ptr()

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        key = self.key(packed)
        if key not in self.kept:
            self.kept[key] = self.dequant(packed).clone()
        return linear(x, self.kept[key])


class KeepsBySample(KeepsByPointer):
    """Unpacks again where a sample of what is stored is new: every 6007th byte."""

    def key(self, packed: dict[str, Tensor]) -> Any:
        return packed["q"].data_ptr(), bytes(packed["q"].flatten()[::6007].numpy())


class SizesFollowValues(Int8):
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        order = torch.zeros(1 + int(weight.flatten().mul(torch.arange(weight.numel()) % 7).sum().abs() * 1e6) % 64)
        return {**super().pack(weight), "order": order}


@pytest.mark.parametrize("implementation", [Int8, Transposed, Entangled])
@pytest.mark.parametrize("weights", [1, 2])
def test_honest_layouts_are_right_whatever_changes(implementation: type[Any], weights: int) -> None:
    about = header("quantization", "Q8")
    for seed in range(4):
        case = small(weights=weights)
        assert judge_case(QUANTIZATION, about, case, implementation, Source(bytes([seed])), calls=6, timed=True) is None


@pytest.mark.parametrize("implementation", [KeepsByPointer, KeepsBySample])
@pytest.mark.parametrize("quality_class", ["E", "Q8", "Q4"])
def test_weights_kept_from_another_call_are_found_out(implementation: type[Any], quality_class: str) -> None:
    about = header("quantization", quality_class)
    if quality_class == "E":
        # Exactly stored: the weight itself.
        implementation = type(
            "Exact",
            (implementation,),
            {"pack": lambda self, weight: {"q": weight.clone()}, "dequant": lambda self, packed: packed["q"].float()},
        )
    case = small(outputs=1024)
    found = judge_case(QUANTIZATION, about, case, implementation, Source(b"kept"), calls=8, timed=True)
    assert found is not None
    # Where a bound is tight enough, that may find it first.
    assert quality_class != "Q4" or "y is what it was before" in found.sentence


def test_a_wrong_product_is_not_called_stale() -> None:
    for wrong in (torch.zeros_like, torch.neg, lambda y: torch.full_like(y, float("nan"))):
        implementation = type(
            "Wrong", (Int8,), {"linear": lambda self, x, packed, wrong=wrong: wrong(Int8.linear(self, x, packed))}
        )
        found = judge_case(
            QUANTIZATION, header("quantization", "Q8"), small(), implementation, Source(b"w"), timed=True
        )
        assert found is not None
        assert "before" not in found.sentence


@pytest.mark.parametrize("bits_of_activations", [4, 8])
def test_coarse_activations_are_not_called_stale(bits_of_activations: int) -> None:
    """An honest W4A4 or W8A8: one token, one weight, heavy rows."""

    class Coarse(Int8):
        def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
            steps = 2 ** (bits_of_activations - 1) - 1
            scale = x.abs().amax(-1, keepdim=True) / steps
            return linear((x / scale).round() * scale, self.dequant(packed))

    for seed in range(12):
        case = small(tokens=1, weights=1)
        found = judge_case(
            QUANTIZATION, header("quantization", "Q4"), case, Coarse, Source(bytes([7, seed])), calls=12, timed=True
        )
        assert found is None or "before" not in found.sentence


def test_sizes_must_follow_from_the_shape() -> None:
    with pytest.raises(CallFailed, match="names, shapes or dtypes"):
        judge_case(QUANTIZATION, header("quantization", "Q8"), small(), SizesFollowValues, Source(b"sizes"))


@pytest.mark.parametrize("file", ["moved/unpacked_weights.py", "moved/cache_by_heads.py"])
def test_attacks_that_keep_a_copy_are_found_out_over_published_workloads(file: str) -> None:
    about, implementation = registry.load_file(ATTACKS / file)
    kind = kind_named(about.kind)
    kept = vars(sys.modules[implementation.__module__])["unpacked" if "unpacked" in file else "copies"]
    findings = []
    for case in kind.cases("performance", about, CPU):
        # By address: in this one process it would meet addresses that come again with other shapes.
        kept.clear()
        findings.append(judge_case(kind, about, case, implementation, Source(b"attack"), calls=4, timed=True))
    assert any(
        finding is not None and ("what it was before" in finding.sentence or "out is" in finding.sentence)
        for finding in findings
    )


def test_a_row_is_found_in_whichever_dimension_it_lies() -> None:
    rows = torch.tensor([3, 7])
    first = torch.tensor([3 * 6 + 1, 7 * 6 + 5])
    assert line_of(first, torch.Size([10, 6]), rows, 10).tolist() == [3, 7]  # type: ignore[union-attr]
    second = torch.tensor([2 * 10 + 3, 5 * 10 + 7])
    assert line_of(second, torch.Size([6, 10]), rows, 10).tolist() == [3, 7]  # type: ignore[union-attr]
    assert line_of(torch.tensor([4]), torch.Size([10, 6]), rows, 10) is None
    assert line_of(torch.tensor([4]), torch.Size([5, 12]), rows, 10) is None


def test_rows_that_are_stored_apart_change_apart() -> None:
    case = QUANTIZATION.vary(small(), Source(b"vary"))
    separate = [chosen.float().mean() for chosen in parts_in_calls(case, Int8)]
    assert 0.2 < float(torch.stack(separate).mean()) < 0.5
    assert all(0 < share < 1 for share in separate)
    # Otherwise all change or none does.
    assert {float(chosen.float().mean()) for chosen in parts_in_calls(case, Entangled)} == {0.0, 1.0}


def parts_in_calls(case: Case, implementation: type[Any]) -> list[Tensor]:
    from engine.slots.inprocess import InProcess
    from engine.slots.kind import Held

    held = QUANTIZATION.held(case, Source(b"held"))
    other = QUANTIZATION.other(case, held, Source(b"other"))
    assert other is not None
    for one in (held, other):
        runner = InProcess(QUANTIZATION, implementation)
        preparation = QUANTIZATION.preparation(case, one)
        assert preparation is not None
        one.update({name: Held(value, "read") for name, value in runner.prepare(preparation).items()})
        runner.hold(one)
        more, finding = QUANTIZATION.settle(case, header("quantization", "Q8"), one, runner)
        assert finding is None
        one.update(more)
    held.update(QUANTIZATION.parts(case, held, other, runner))
    assert len(held["0:rows"].tensor) == min(PARTS, 96)
    calls = [QUANTIZATION.draw(case, held, Source(bytes([n]))) for n in range(10)]
    return [chosen for call in calls for chosen in call.parts.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_rewriting_is_undone(dtype: torch.dtype) -> None:
    held = {"w": torch.randn(4, 6).to(dtype)}
    before = held["w"].clone()
    other = torch.full((3,), 2.0).to(dtype)

    def within() -> None:
        with rewritten(held, {"w": (torch.tensor([0, 7, 23]), other)}):
            assert bits(held["w"]).view(-1)[7] == bits(other)[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        within()
    assert torch.equal(bits(held["w"]), bits(before))


EXACTLY = Heads(groups=4, telling=0.0, coarse=False)


def loud_and_quiet(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What an output [layers, heads, channels] is, was, and its scale: a few heads that attend to few tokens, and many that hardly change."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.full((8, 32, 1), 0.01)
    magnitude[0, :4] = 1.0
    before = torch.randn((8, 32, 128), generator=generator) * magnitude
    change = torch.zeros_like(before)
    change[:, :4, :16] = 4e-5 * torch.randn((8, 4, 16), generator=generator)
    change[0, :4, :16] *= 5
    expected = before + change
    return expected, before, expected.square().mean(-1, keepdim=True).sqrt()


def test_an_honest_output_is_not_called_stale_for_errors_larger_than_the_change() -> None:
    """Rounding loud heads to bfloat16 outweighs what one token of many thousands changes."""
    nearer_to_before, told, told_off = 0, 0, 0
    for seed in range(200):
        expected, before, scale = loud_and_quiet(seed)
        change, honest = expected - before, expected.bfloat16()
        nearer_to_before += float((change * (honest.float() - before - change / 2)).sum()) < 0
        assert stale("out", honest, expected, before, scale, "a token", EXACTLY) is None
        told += stale("out", before.bfloat16(), expected, before, scale, "a token", EXACTLY) is not None
        # Errors parked where nothing is to be told hide nothing.
        parked = before.clone()
        parked[0] *= 1.009
        told_off += stale("out", parked.bfloat16(), expected, before, scale, "a token", EXACTLY) is not None
    assert nearer_to_before > 5, "which the plain distances would have called stale"
    assert told > 190
    assert told_off > 190


def test_errors_as_large_in_quiet_heads_as_in_loud_ones_are_not_called_stale() -> None:
    """An honest output in steps of one size for all heads, coarser than what the quiet ones change by."""
    for seed in range(200):
        expected, before, scale = loud_and_quiet(seed)
        noise = torch.Generator().manual_seed(1000 + seed)
        for size in (2e-3, 1e-4, 1e-5):
            honest = expected + size * torch.randn(expected.shape, generator=noise)
            assert stale("out", honest, expected, before, scale, "a token", EXACTLY) is None


def weighed(queries: Tensor, keys: Tensor, values: Tensor, rounded: bool) -> Tensor:
    """Causal attention [new, heads, channels] of the last tokens, whose weights are rounded to bfloat16 before they weigh, as flash kernels do."""
    new, total = queries.shape[1], keys.shape[1]
    scores = queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
    hidden = torch.arange(total) > torch.arange(total - new, total)[:, None]
    weights = scores.masked_fill(hidden, float("-inf"))
    weights = (weights - weights.amax(-1, keepdim=True)).exp()
    taken = weights.bfloat16().float() if rounded else weights
    return (taken @ values / weights.sum(-1, keepdim=True)).transpose(0, 1)


@pytest.mark.parametrize("seed", [*range(6), 25, 383])
def test_errors_that_a_heads_channels_have_in_common_are_not_taken_for_staleness(seed: int) -> None:
    """A few tokens attend to few keys: rounding one weight moves all channels towards its values, as another key's change may."""
    generator = torch.Generator().manual_seed(seed)
    new, total, heads, width = 256, 512, 8, 128

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().float()

    def sizes() -> Tensor:
        return torch.randn((heads, new, 1), generator=generator).mul(0.7).exp()

    queries = drawn(heads, new, width) * sizes()
    keys, values = drawn(heads, total, width), drawn(heads, total, width)
    for part in (keys, values):
        part[:, -new:] *= sizes()
    keys, values = keys.bfloat16().float(), values.bfloat16().float()
    earlier = keys.clone()
    keys[:4, 5, 16:32] = drawn(16)
    expected, before = weighed(queries, keys, values, False), weighed(queries, earlier, values, False)
    scale = expected.square().mean(-1, keepdim=True).sqrt()
    honest = weighed(queries, keys, values, True).bfloat16()
    late = weighed(queries, earlier, values, True).bfloat16()
    if seed in (25, 383):
        assert stale("out", honest, expected, before, scale, "a token") is not None, "as if errors were independent"
    assert stale("out", honest, expected, before, scale, "a token", EXACTLY) is None
    assert stale("out", late, expected, before, scale, "a token", EXACTLY) is not None
    some = torch.where(torch.arange(new)[:, None, None] % 4 == 0, late, honest)
    assert stale("out", some, expected, before, scale, "a token", EXACTLY) is not None


@pytest.mark.parametrize(
    ("heads", "sequences", "fewest"),
    [
        pytest.param(EXACTLY, 8, 2, id="E"),
        pytest.param(Heads(groups=4, telling=0.18, coarse=True), 32, 8, id="Q8"),
    ],
)
def test_a_part_of_the_sequences_that_is_stale_is_told(heads: Heads, sequences: int, fewest: int) -> None:
    """Decoding: too little changes in each for a row alone to tell in a coarse class; many rows do."""
    generator = torch.Generator().manual_seed(11)
    keys_of = 4096 // sequences
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(sequences):
        queries, keys, values = (torch.randn(4, n, 64, generator=generator) for n in (4, keys_of, keys_of))
        earlier = keys.clone()
        keys[1, 7, :16] = torch.randn(16, generator=generator)
        values_before = values.clone()
        values[2, 9, 16:32] = torch.randn(16, generator=generator)
        # The four queries of a key/value head are four heads of one token, which sees all keys.
        now, then = (decoded(queries, one, other) for one, other in ((keys, values), (earlier, values_before)))
        rounded = (decoded(queries, one, other, True) for one, other in ((keys, values), (earlier, values_before)))
        parts.append((now, then, *rounded))
    expected, before, honest, late = (torch.cat(column) for column in zip(*parts, strict=True))
    scale = expected.square().mean(-1, keepdim=True).sqrt()
    assert stale("out", honest.bfloat16(), expected, before, scale, "a token", heads) is None
    for count in range(fewest, sequences + 1):
        stale_ones = torch.arange(sequences)[:, None, None] < count
        got = torch.where(stale_ones, late, honest).bfloat16()
        assert stale("out", got, expected, before, scale, "a token", heads) is not None, count


def decoded(queries: Tensor, keys: Tensor, values: Tensor, rounded: bool = False) -> Tensor:
    """[1, heads, channels] of one token's queries [groups, heads of a group, channels], with its weights in bfloat16 or as they are."""
    weights = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(-1)
    return ((weights.bfloat16().float() if rounded else weights) @ values).flatten(0, 1)[None]


def test_one_stale_layer_among_many_is_told() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = torch.randn((8, 4, 128), generator=generator)
    before = expected + 0.05 * torch.randn((8, 4, 128), generator=generator)
    scale = torch.ones(8, 4, 1)
    got = expected.clone()
    got[5] = before[5]
    found = stale("out", got.bfloat16(), expected, before, scale, "a token", EXACTLY)
    assert found is not None
    assert found.index[0] == 5


def test_nothing_is_called_stale_where_nothing_was_changed() -> None:
    y = torch.ones(4, 8)
    for got in (y, 2 * y, torch.zeros_like(y), torch.full_like(y, float("nan"))):
        assert stale("y", got, y, y, y, "a row") is None
    zero = torch.zeros_like(y)
    assert stale("y", zero, zero, zero, zero, "a row") is None


@pytest.mark.parametrize("sequences", ["1/4096", "1/512*6", "40/1200"])
@pytest.mark.parametrize("quality_class", ["E", "Q8"])
def test_attention_over_pages_gathered_before_is_found_out_in_coarse_dtypes_too(
    sequences: str, quality_class: str
) -> None:
    """As on an accelerator, where published workloads are in bfloat16; the default passes."""
    kind = kind_named("attention")
    workload = AttentionWorkload("history", 8, 2, 64, 16, sequences, layers=2)
    about = header("attention", quality_class)
    case = AttentionKind.case(workload, "bfloat16", "cpu", "performance", Caps.of(about), tight=False)
    default: Any = registry.load("attention", "sdpa")
    for seed in range(3):
        assert judge_case(kind, about, case, default, Source(bytes([seed])), calls=4, timed=True) is None

    class Keeps(default):  # type: ignore[valid-type, misc]
        """Attends to the cache as it was when it first met it, but for what is written since."""

        def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: Any) -> Any:
            if len(seen) < 2 and kv.data_ptr() not in seen:
                seen[kv.data_ptr()] = kv.clone()
            kept = seen.get(kv.data_ptr())
            if kept is None:
                return super().forward(q, k, v, kv, meta)
            self.write(k, v, kept, meta)
            return super().forward(q, k, v, kept, meta)

    found = None
    for seed in range(3):
        seen: dict[int, Tensor] = {}
        found = found or judge_case(kind, about, case, Keeps, Source(bytes([seed])), calls=6, timed=True)
    assert found is not None
    assert "what it was before" in found.sentence or "out is" in found.sentence
