"""How far off a model's weights are is told by how much worse it is, whatever a module says of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.corpus import evaluation_tokens
from engine.generate import Engine
from engine.loader import load_model
from engine.slots.kind import kind_named
from engine.slots.kinds.quantization import BORNE_OUT
from workers.suites.integration.bench import CHECKPOINT, CHUNK, DISTURBANCE, TEXTS, IntegrationBench

TOKENS = 384


class Rounded:
    """Weights in some bits with a scale for each group of 32, of which the mean error is noted; `scaled`: v and up by as much, what takes them by the inverse."""

    def __init__(self, bits: int, scaled: float = 1.0) -> None:
        self.levels = 2 ** (bits - 1) - 1
        self.scaled = scaled
        self.error = self.size = 0.0

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        wide = weight.clone()
        if weight.shape in ((256, 256), (256, 768)):
            wide /= self.scaled
        elif weight.shape in ((512, 256), (1536, 256)):
            wide[384 if len(wide) == 512 else 768 :] *= self.scaled
        groups = wide.unflatten(1, (-1, 32))
        scale = groups.abs().amax(-1, keepdim=True) / self.levels
        stored = ((groups / scale).round() * scale).flatten(1)
        self.error += float((stored - weight).square().sum())
        self.size += float(weight.square().sum())
        return {"weight": stored}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        return functional.linear(x, packed["weight"])

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        return packed["weight"]

    @property
    def off(self) -> float:
        return (self.error / self.size) ** 0.5


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Shorter texts, and what the reference and the disturbed model make of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made: Any = IntegrationBench.__new__(IntegrationBench)
    made.kind = kind_named("quantization")
    drawn = [evaluation_tokens(bytes([number]) * 32, TOKENS) for number in range(TEXTS)]
    made.texts = [[int(token) for token in text.ids] for text in drawn]
    made._scored = [torch.from_numpy(text.scored.copy()) for text in drawn]
    made.ours = logits(made, None)
    made.disturbed = logits(made, made.kind.disturbed(DISTURBANCE, torch.Generator().manual_seed(0)))
    yield made
    torch.set_num_threads(threads)


def logits(bench: Any, module: Any) -> list[Tensor]:
    model = load_model(CHECKPOINT, dtype=torch.float32, device="cpu")
    slots = {} if module is None else {"quantization": module}
    return Engine(model, slots, trusted=True, max_len=1024, kv_tokens=2048).logits(bench.texts, chunk=CHUNK)


def as_bad_as(bench: Any, module: Any) -> float:
    found = bench._as_bad_as(bench.ours, logits(bench, module), bench.disturbed)
    assert isinstance(found, float)
    return found


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_what_is_off_at_random_is_as_bad_as_it_is_off(bench: Any, share: float) -> None:
    module = bench.kind.disturbed(share, torch.Generator().manual_seed(1))
    assert as_bad_as(bench, module) == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_quality_bears_out_what_rounding_loses(bench: Any, bits: int) -> None:
    module = Rounded(bits)
    seen = as_bad_as(bench, module)
    assert seen <= 1.2 * module.off
    assert BORNE_OUT * seen >= module.off


def test_what_is_scaled_and_scaled_back_is_no_worse_however_far_off(bench: Any) -> None:
    honest, scaled = Rounded(8), Rounded(8, 1.12)
    close, same = as_bad_as(bench, honest), as_bad_as(bench, scaled)
    assert scaled.off > 10 * honest.off
    assert same == pytest.approx(close, rel=0.1)


def test_to_be_bad_in_some_texts_is_no_excuse(bench: Any) -> None:
    """A host knows which rows of a call are of which text."""
    good, bad = Rounded(8), Rounded(4)
    mixed = logits(bench, bad)[: TEXTS // 2] + logits(bench, good)[TEXTS // 2 :]
    found = bench._as_bad_as(bench.ours, mixed, bench.disturbed)
    assert found == pytest.approx(as_bad_as(bench, Rounded(8)), rel=0.2)
