"""The judge's engine with a slot's calls elsewhere gives what the same engine gives with the slot inside."""

from typing import Any

import pytest
import torch

from engine.generate import Engine
from engine.loader import random_model
from engine.models.config import ModelConfig
from engine.slots import registry
from engine.slots.inprocess import InProcess
from engine.slots.kind import Call, kind_named
from tests.engine.judging import header

TEXTS = [[5, 9, 2, 7, 7, 1, 3, 8, 4, 6, 11, 10], [3, 3, 12, 1, 9], list(range(1, 40))]


@pytest.fixture(scope="module")
def model() -> Any:
    config = ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }
    )
    return random_model(config, seed=1, dtype=torch.float32)


class Counting(InProcess):
    """Counts calls by operation."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: dict[str, int] = {}

    def run(self, call: Call) -> dict[str, torch.Tensor]:
        self.calls[call.operation] = self.calls.get(call.operation, 0) + 1
        return super().run(call)


@pytest.mark.parametrize(
    ("kind", "name", "limits", "calls"),
    [
        ("attention", "sdpa", {}, {"layer"}),
        ("normalization", "fused", {}, {"norm"}),
        ("activation", "fused", {}, {"swiglu"}),
        ("quantization", "int8wo", {"embedding": True}, {"linear", "embedding"}),
        ("quantization", "int4wo", {"embedding": True}, {"linear", "embedding"}),
        ("adapter", "cpu_x86", {"operators": ["rms_norm", "swiglu"]}, {"operator"}),
    ],
)
def test_an_engine_with_remote_calls_says_the_same(
    model: Any, kind: str, name: str, limits: dict[str, Any], calls: set[str]
) -> None:
    slot = kind_named(kind)
    runner = Counting(slot, registry.load(kind, name))
    remote = Engine(model, {kind: slot.proxy(runner, header(kind, "Q8", **limits))}, trusted=True, kv_tokens=1024)
    inside = Engine(
        model, {kind: registry.load(kind, name)() if kind in ("quantization", "adapter") else name}, kv_tokens=1024
    )
    for chunk in (None, 3):
        for ours, theirs in zip(remote.logits(TEXTS, chunk), inside.logits(TEXTS, chunk), strict=True):
            assert float((ours - theirs).abs().max()) < 1e-4
    assert set(runner.calls) == calls


def test_attention_sends_one_message_a_layer(model: Any) -> None:
    slot = kind_named("attention")
    runner = Counting(slot, registry.load("attention", "sdpa"))
    remote = Engine(model, {"attention": slot.proxy(runner, header("attention"))}, trusted=True, kv_tokens=1024)
    remote.logits([TEXTS[2]])
    assert runner.calls == {"layer": 2}


def test_pages_that_an_attention_lets_go_of_are_offered_to_the_engine(model: Any) -> None:
    sdpa: Any = registry.load("attention", "sdpa")

    class Forgetful(sdpa):  # type: ignore[misc]
        """Lets go of the first page of every sequence, once it has another."""

        def evict(self, kv: torch.Tensor, meta: Any) -> torch.Tensor:
            return meta.block_table[meta.kv_len > meta.block_size, 0]

    slot = kind_named("attention")
    runner = Counting(slot, Forgetful)
    proxy = slot.proxy(runner, header("attention", evict=True))
    remote = Engine(model, {"attention": proxy}, trusted=True, kv_tokens=1024, block_size=8)
    assert remote.evicts
    remote.logits([TEXTS[2]], 8)
    assert runner.calls["evict"] > 0
