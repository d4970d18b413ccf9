"""How much of a whole step of a model each slot takes, so that a slot's gain can be told as one of the whole (Amdahl).

A share is measured by leaving the slot out: the engine makes the same steps once with a module in the slot and once with one that does nothing
and gives noise of unit size, in turns. What is missing then is what the fastest module could save, launches and plans included. On an accelerator
all other slots have the engine's fastest modules, as whoever serves a model gives it. An attention that cannot be recorded is left out where a
model decodes there: launches from Python would be most of such a step. Weights are random, and of what a step computes nothing is looked at.
"""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import torch
from torch import Tensor

from engine.bind import allows_graphs
from engine.generate import Engine
from engine.loader import random_model
from engine.models.config import ModelConfig
from engine.slots.attention import StandardKV, StepMeta
from engine.slots.kind import kind_named
from engine.slots.registry import implementations
from workers.calibrations import ROOT, Phase, Share, StepShares, code_of
from workers.statistics import estimate

SLOTS = ("attention", "quantization", "normalization", "activation")
AROUND: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"attention": "paged", "normalization": "fused", "activation": "fused"},
}
"""What all slots but the one in question have; where nothing stands, the default."""
WARM_UPS = 1
ROUNDS = 7


@dataclass(frozen=True)
class Step:
    """A step of a model: a prompt of `prompt` tokens at once, or one more token of each of `batch` sequences, after prompts of as many."""

    name: str
    phase: Phase
    batch: int
    prompt: int
    tokens: int = 1
    """How many steps of decoding are averaged."""


LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LLAMA_8B = LLAMA_1B | {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
MODELS = {"cpu": LLAMA_1B, "cuda": LLAMA_8B}
STEPS = {
    "cpu": (
        Step("a prompt of 256 tokens, Llama-3.2-1B's shape, float32", "prefill", 1, 256),
        Step("a token after 256, Llama-3.2-1B's shape, float32", "decode", 1, 256, 12),
    ),
    "cuda": (
        Step("a prompt of 8192 tokens, Llama-3.1-8B's shape, bfloat16", "prefill", 1, 8192),
        Step("a token of each of 16 sequences after 2048, Llama-3.1-8B's shape, bfloat16", "decode", 16, 2048, 48),
    ),
}


class Noise:
    """Results of a form that nobody computes: the same normal numbers each time. Products of zeros would take less time, as they take less power."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Tensor] = {}

    def of(self, like: Tensor, *shape: int) -> Tensor:
        """Normal numbers [*shape] of the dtype and on the device of `like`."""
        key = (shape, like.dtype, like.device)
        if key not in self._known:
            self._known[key] = torch.randn(shape, dtype=like.dtype, device=like.device)
        return self._known[key]


class NoAttention(StandardKV):
    """What came is what comes out; no cache is written or read."""

    cuda_graph = True

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        """Does nothing."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns q."""
        return q


class NoNormalization:
    """Noise."""

    def __init__(self, eps: float) -> None:
        self.noise = Noise()

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> ([T, D], [T, D])."""
        noise = self.noise.of(x, *x.shape)
        return noise, noise


class NoActivation:
    """Noise."""

    def __init__(self) -> None:
        self.noise = Noise()

    def forward(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2F] -> [T, F]."""
        return self.noise.of(gate_up, gate_up.shape[0], gate_up.shape[1] // 2)


class NoQuantization:
    """Weights of which nothing is kept but how many outputs they have."""

    def __init__(self) -> None:
        self.noise = Noise()

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """A row of as many outputs."""
        return {"outputs": weight.new_zeros(weight.shape[0], 1)}

    def linear(self, x: Tensor, packed: dict[str, Tensor]) -> Tensor:
        """x [T, in] -> noise [T, out]."""
        return self.noise.of(x, x.shape[0], packed["outputs"].shape[0])

    def dequant(self, packed: dict[str, Tensor]) -> Tensor:
        """Nobody asks for it."""
        raise NotImplementedError


NOTHING: dict[str, Callable[[], Any]] = {
    "attention": lambda: NoAttention,
    "quantization": NoQuantization,
    "normalization": lambda: NoNormalization,
    "activation": NoActivation,
}


def prompts(step: Step, turn: int, vocab: int) -> list[list[int]]:
    """Prompts of which no two begin alike, within a turn or over turns: what was cached of one is of no use to another."""
    rest = [7 * position % vocab for position in range(1, step.prompt)]
    return [[(turn * step.batch + row) % vocab, *rest] for row in range(step.batch)]


def seconds_of(engine: Engine, step: Step, turn: int) -> float:
    """Seconds of one step, as whoever waits for its tokens sees it."""
    texts = prompts(step, turn, engine.model.config.vocab)
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    if step.phase == "prefill":
        engine.generate(texts, max_tokens=1, ignore_eos=True)
        return time.perf_counter() - began
    at = [time.perf_counter() for _ in engine.stream(texts, max_tokens=step.tokens + 1, ignore_eos=True)]
    # From when each has its first token until each has its last.
    return (at[-1] - at[step.batch - 1]) / step.tokens


def standing(slot: str, device: str) -> str:
    """What a slot has that is not in question."""
    return AROUND[device].get(slot, kind_named(slot).default)


def modules(slot: str, step: Step, device: str) -> list[str]:
    """The modules of a slot whose shares are measured: the default and the one that stands there otherwise."""
    names = dict.fromkeys((kind_named(slot).default, standing(slot, device)))
    if slot == "attention" and device == "cuda" and step.phase == "decode":
        return [name for name in names if allows_graphs(name)]
    return list(names)


def engines(config: dict[str, Any], step: Step, device: Literal["cpu", "cuda"]) -> dict[tuple[str, str], Engine]:
    """By slot and module, an engine with that module in the slot, and under "" the one without; the engine as it is under ("", "")."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = random_model(ModelConfig.from_hf(config), 0, dtype=dtype, device=device)
    room = step.batch * (step.prompt + step.tokens + 64)
    options: dict[str, Any] = {
        "max_len": step.prompt + step.tokens + 64,
        "kv_tokens": room,
        "max_batch": step.batch,
        "step_tokens": step.batch * step.prompt,
    }
    around = AROUND[device]
    whole = Engine(model, around, **options)
    made = {("", ""): whole}
    for slot in SLOTS:
        made[slot, ""] = Engine(model, around | {slot: NOTHING[slot]()}, **options)
        for name in modules(slot, step, device):
            # A quantization that is asked for by name is another path than none at all.
            there = name == standing(slot, device) and slot != "quantization"
            made[slot, name] = whole if there else Engine(model, around | {slot: name}, **options)
    return made


def shares_of(
    step: Step,
    config: dict[str, Any],
    device: Literal["cpu", "cuda"],
    rounds: int = ROUNDS,
    say: Callable[[int], None] = lambda _: None,
) -> StepShares:
    """Measures a step in `rounds` rounds, each of which makes it with all slots and without each; never less than none."""
    made = engines(config, step, device)
    different = list({id(engine): engine for engine in made.values()}.values())
    taken: dict[int, list[float]] = defaultdict(list)
    for turn in range(WARM_UPS + rounds):
        # Whoever comes first pays for what others warmed up, so each does once in a while.
        first = turn % len(different)
        for engine in [*different[first:], *different[:first]]:
            seconds = seconds_of(engine, step, turn)
            if turn >= WARM_UPS:
                taken[id(engine)].append(seconds)
        say(turn + 1)

    def share(slot: str, name: str) -> Share:
        sides = zip(taken[id(made[slot, ""])], taken[id(made[slot, name])], strict=True)
        found = estimate([math.log(whole / without) for without, whole in sides])
        # As a share of the longer of the two; less than nothing is noise.
        share, low, high = (max(0.0, gain / (1 + gain)) for gain in (found.gain, found.low, found.high))
        return Share(share, low, high, rounds, code_of(implementations(ROOT / "engine", slot)[name]))

    return StepShares(
        step=step.name,
        phase=step.phase,
        milliseconds=1e3 * statistics.median(taken[id(made["", ""])]),
        shares={slot: {name: share(slot, name) for name in modules(slot, step, device)} for slot in SLOTS},
        measured_on=datetime.now(UTC).date().isoformat(),
    )
