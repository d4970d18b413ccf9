"""Trains the quality model, the checkpoint that the judge questions: `python -m engine.train_reference --out DIR`.

A Llama-shaped decoder of 7.4 M parameters with a byte-level BPE of its own, trained from nothing but `engine.corpus`, first on short
documents and then on long ones. The length, the learning rate and the quantization-aware steps follow the share of the minutes
that has passed, so the same recipe fits whatever time there is; with `--steps` they follow the steps, and a second run on the same
machine repeats the first.

Training wants to see whole documents at once and no cache, so it has a model of its own here, a hundred lines; tests hold it to the
same logits as the engine's.
"""

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine import corpus

# --- the model ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes of the model, by the names of a Hugging Face Llama config."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 32768

    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return asdict(self) | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.02,
            "torch_dtype": "bfloat16",
        }

    @classmethod
    def read(cls, config: Path) -> "Shape":
        known = json.loads(config.read_text())
        return cls(**{name: known[name] for name in cls.__dataclass_fields__})


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [tokens, heads, head_dim]; cos, sin: [tokens, head_dim / 2]. Rotates halves, as Hugging Face's Llama does."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def fake_int4(weight: Tensor, noise: bool, group: int = 64) -> Tensor:
    """The weight as symmetric int4 with one scale per `group` inputs would give it back; its gradient passes straight through.

    With `noise`, an error of the same size but drawn at random, so that no single grid is learnt. Small models are brittle under
    rounding where large ones are not; training on such weights now and then makes this one behave like its elders.
    """
    grouped = weight.detach().unflatten(-1, (-1, group))
    scale = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 7
    rounded = (
        grouped + scale * (torch.rand_like(grouped) - 0.5) if noise else (grouped / scale).round().clamp(-8, 7) * scale
    )
    rounded = rounded.flatten(-2)
    return weight + (rounded - weight).detach()


def attention_inputs(
    x: Tensor, norm: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, cos: Tensor, sin: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x: [tokens, hidden] -> q, k, v: [tokens, heads, head_dim], keys and values repeated to the number of query heads."""
    head_dim = 2 * cos.shape[-1]
    h = rms_norm(x, norm, eps).to(wq.dtype)
    q, k, v = (F.linear(h, w).unflatten(-1, (-1, head_dim)) for w in (wq, wk, wv))
    group = q.shape[1] // k.shape[1]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def after_attention(
    x: Tensor, attended: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float
) -> Tensor:
    """x: [tokens, hidden], attended: [tokens, heads, head_dim] -> the residual stream after the block."""
    x = x + F.linear(attended.flatten(1), wo)
    h = rms_norm(x, norm, eps).to(gate.dtype)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


def divergences(x: Tensor, expected: Tensor, norm: Tensor, embedding: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """KL of the predictions from x against those from `expected`, both [tokens, hidden] before the last norm: [tokens] nats."""
    head = embedding.to(dtype)
    got = F.log_softmax(F.linear(rms_norm(x, norm, eps).to(dtype), head).float(), -1)
    with torch.no_grad():
        want = F.log_softmax(F.linear(rms_norm(expected, norm, eps).to(dtype), head).float(), -1)
    return (want.exp() * (want - got)).sum(-1)


def token_losses(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Cross-entropy of each token in nats, [tokens] float32."""
    logits = F.linear(rms_norm(x, norm, eps).to(dtype), embedding.to(dtype)).float()
    return F.cross_entropy(logits, targets, reduction="none")


class Projections(nn.Module):
    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, nn.Linear(inputs, outputs, bias=False))


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        d, q, kv = s.hidden_size, s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
        self.self_attn = Projections(q_proj=(d, q), k_proj=(d, kv), v_proj=(d, kv), o_proj=(q, d))
        self.mlp = Projections(
            gate_proj=(d, s.intermediate_size), up_proj=(d, s.intermediate_size), down_proj=(s.intermediate_size, d)
        )
        self.input_layernorm = Norm(d)
        self.post_attention_layernorm = Norm(d)


class Decoder(nn.Module):
    """The model under its Hugging Face names. Attributes:

    dtype: what matrices are multiplied in; the residual stream and the norms stay float32.
    rounding: None, or what the blocks' matrices go through before use.
    attention: (q, k, v: [batch, heads, length, head_dim]) -> the same shape, causal.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.model.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.model.norm = Norm(shape.hidden_size)
        self.dtype = torch.float32
        self.rounding: Callable[[Tensor], Tensor] | None = None
        self.attention: Callable[[Tensor, Tensor, Tensor], Tensor] = functools.partial(
            F.scaled_dot_product_attention, is_causal=True
        )
        self._before, self._after, self._losses, self._divergences = (
            attention_inputs,
            after_attention,
            token_losses,
            divergences,
        )

    def initialize(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                std = 0.02 if "embed" in name else p.shape[1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std *= 0.1
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=random) * std)

    def compile(self) -> None:
        """Compiles what lies between the attentions, once for all layers and lengths, as the number of tokens is always the same."""
        self._before, self._after, self._losses, self._divergences = (
            torch.compile(f, dynamic=False) for f in (attention_inputs, after_attention, token_losses, divergences)
        )

    def hidden(self, ids: Tensor) -> Tensor:
        """ids: [batch, length] -> the residual stream before the last norm, [batch * length, hidden] float32."""
        s, (batch, length) = self.shape, ids.shape
        frequencies = s.rope_theta ** (
            -torch.arange(0, s.head_dim, 2, device=ids.device, dtype=torch.float64) / s.head_dim
        )
        angles = (
            (torch.arange(length, device=ids.device, dtype=torch.float64)[:, None] * frequencies)
            .float()
            .repeat(batch, 1)
        )
        cos, sin = angles.cos(), angles.sin()

        def ready(projection: nn.Linear) -> Tensor:
            return (self.rounding(projection.weight) if self.rounding else projection.weight).to(self.dtype)

        x = self.model.embed_tokens(ids.flatten())
        for layer in self.model.layers:
            a, m = layer.self_attn, layer.mlp
            wq, wk, wv, wo = (ready(p) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj))
            gate, up, down = (ready(p) for p in (m.gate_proj, m.up_proj, m.down_proj))
            qkv = self._before(x, layer.input_layernorm.weight, wq, wk, wv, cos, sin, s.rms_norm_eps)
            q, k, v = (t.view(batch, length, -1, s.head_dim).transpose(1, 2) for t in qkv)
            attended = self.attention(q, k, v).transpose(1, 2).reshape(batch * length, -1, s.head_dim)
            x = self._after(x, attended, wo, layer.post_attention_layernorm.weight, gate, up, down, s.rms_norm_eps)
        return x

    def losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets: [batch, length] -> cross-entropy in nats, [batch, length] float32."""
        return self._losses(self.hidden(ids), *self._head(targets.flatten())).view(ids.shape)

    def rounded_losses(
        self, ids: Tensor, targets: Tensor, rounding: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy with rounded weights, and how far its predictions are from those with the weights as they are."""
        with torch.no_grad():
            expected = self.hidden(ids)
        self.rounding = rounding
        x = self.hidden(ids)
        self.rounding = None
        losses = self._losses(x, *self._head(targets.flatten()))
        norm, embedding, *rest = self._head()
        return losses.view(ids.shape), self._divergences(x, expected, norm, embedding, *rest).view(ids.shape)

    def _head(self, *between: Tensor) -> tuple[Any, ...]:
        return self.model.norm.weight, self.model.embed_tokens.weight, *between, self.shape.rms_norm_eps, self.dtype

    def logits(self, ids: Tensor, last: int | None = None) -> Tensor:
        """ids: [batch, length] -> float32 logits of the last `last` positions (all if None), [batch, last, vocab]."""
        x = self.hidden(ids).view(*ids.shape, -1)
        x = x if last is None else x[:, -last:]
        h = rms_norm(x, self.model.norm.weight, self.shape.rms_norm_eps).to(self.dtype)
        return F.linear(h, self.model.embed_tokens.weight.to(self.dtype)).float()


# --- the checkpoint -----------------------------------------------------------------------------------------------------------

# Large models have a few input channels that matter out of proportion; int4 with one scale for a whole row loses the others, which is
# why groups exist. Powers of two between groups of channels give this small one the same trait and change no output by one bit.
SPREAD = (1.0, 1.0, 0.5, 0.25)


def spread_channels(state: dict[str, Tensor], shape: Shape, *, undo: bool = False) -> dict[str, Tensor]:
    """The state with the input channels of every block's matrices scaled by SPREAD, a factor per 64 channels, and what feeds them by
    the inverse: the norms for q, k, v, gate and up, the rows of up for down. The function computed is the same, bit for bit.
    """
    out = dict(state)

    def factors(channels: int) -> Tensor:
        f = torch.tensor([SPREAD[(c // 64) % len(SPREAD)] for c in range(channels)])
        return 1 / f if undo else f

    inputs, inner = factors(shape.hidden_size), factors(shape.intermediate_size)
    for n in range(shape.num_hidden_layers):
        at = f"model.layers.{n}."
        out[at + "input_layernorm.weight"] = state[at + "input_layernorm.weight"] / inputs
        out[at + "post_attention_layernorm.weight"] = state[at + "post_attention_layernorm.weight"] / inputs
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            out[at + name + ".weight"] = state[at + name + ".weight"] * inputs
        out[at + "mlp.up_proj.weight"] = out[at + "mlp.up_proj.weight"] / inner[:, None]
        out[at + "mlp.down_proj.weight"] = state[at + "mlp.down_proj.weight"] * inner
    return out


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside the path and renames, so that a kill at any moment leaves the old file or the new one."""
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)


def save(model: Decoder, out: Path, history: dict[str, Any]) -> None:
    """Writes model.safetensors (bf16), config.json and loss.json."""
    state = {name: p.detach().float().cpu() for name, p in model.state_dict().items()}
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in spread_channels(state, model.shape).items()}
    replace_file(out / "model.safetensors", lambda p: save_file(state, p, metadata={"format": "pt"}))
    replace_file(out / "config.json", lambda p: p.write_text(json.dumps(model.shape.config(), indent=2) + "\n"))
    replace_file(out / "loss.json", lambda p: p.write_text(json.dumps(history) + "\n"))


def load(directory: Path, *, undo_spread: bool = False) -> Decoder:
    """The checkpoint as a Decoder in float32, on the CPU."""
    shape = Shape.read(directory / "config.json")
    state = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
    model = Decoder(shape)
    model.load_state_dict(spread_channels(state, shape, undo=True) if undo_spread else state)
    return model


def train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    """A byte-level BPE: every text comes back byte for byte, and what it never saw falls back to its bytes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    # Line ends stand alone with the indentation that follows them, so a line can be inserted without its neighbours changing; digits
    # stand alone, so numbers read the same everywhere; a word takes the one sign before it along (" word", ".name", "(x").
    pattern = Regex(r"[\r\n]+ *|[^\r\n\w]?[^\W\d]+|\d| ?[^\s\w]+|\s+(?!\S)|\s+")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The tasks' own words often enough to become one token each.
    tasks = (" " + " ".join(corpus.WORDS) + " " + " ".join(b for pair in corpus.BRACKETS for b in pair)) * 400
    phrases = "".join(corpus.needle("x", "y") + corpus.question("x") for _ in range(400))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[corpus.BOS, corpus.EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, tasks, phrases], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{corpus.BOS} $A",
        pair=f"{corpus.BOS} $A $B",
        special_tokens=[(corpus.BOS, tokenizer.token_to_id(corpus.BOS))],
    )
    return tokenizer


# --- data ---------------------------------------------------------------------------------------------------------------------


def _encode_share(task: tuple[str, int, int, int, list[Path]]) -> corpus.Ids:
    tokenizer_json, seed, variant, share, files = task
    from tokenizers import Tokenizer

    pieces = corpus.Pieces(Tokenizer.from_str(tokenizer_json))
    rng = corpus.generator(str(seed).encode(), "training", variant, share)
    if variant == 0:
        return corpus.encode_sources(map(corpus.read_source, files), pieces)
    return corpus.encode_sources(corpus.draw_sources(rng, 10**12, files), pieces)


def training_stream(tokenizer: Any, files: list[Path], seed: int, variants: int, processes: int) -> corpus.Ids:
    """The files as they are and `variants` times with other names, in tokens: [n] int32."""
    rng = corpus.generator(str(seed).encode(), "order")
    shares = max(1, len(files) // 60)
    tasks = []
    for variant in range(variants + 1):
        order = [files[i] for i in rng.permutation(len(files))]
        tasks += [(tokenizer.to_str(), seed, variant, share, order[share::shares]) for share in range(shares)]
    if processes <= 1:
        return np.concatenate([_encode_share(task) for task in tasks])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return np.concatenate(pool.map(_encode_share, tasks, chunksize=1))


class Batches(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of training documents: ids and weights, [batch, length + 1] each. The seed decides each of them."""

    def __init__(self, tokenizer: Any, stream: corpus.Ids, batch: int, length: int, seed: int, stage: int) -> None:
        self.pieces = corpus.Pieces(tokenizer)
        self.filler = self.pieces.filler(stream)
        self.batch, self.length, self.seed, self.stage = batch, length, seed, stage

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = corpus.generator(str(self.seed).encode(), "batches", self.stage, worker.id if worker else 0)
        while True:
            rows = [corpus.training_document(self.pieces, self.filler, rng, self.length + 1) for _ in range(self.batch)]
            ids, weights = (np.stack(side) for side in zip(*rows, strict=True))
            yield torch.from_numpy(ids), torch.from_numpy(weights)


# --- training -----------------------------------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), scaled to
    the size of an Adam step (Liu et al. 2025, arXiv:2502.16982). Matrices of one shape are stepped together.
    """

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.2
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                gradients = torch.stack([p.grad for p in params])
                state = self.state[params[0]]
                moment = state.setdefault("moment", torch.zeros_like(gradients))
                moment.lerp_(gradients, 1 - group["momentum"])
                update = orthogonal(gradients.lerp(moment, group["momentum"]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update.to(params[0].dtype).unbind()), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns] -> the nearest semi-orthogonal matrices, roughly, by five Newton-Schulz steps in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@dataclass(frozen=True)
class Recipe:
    """How to train: for so many minutes or, if given, so many steps; every share is a share of that.

    stages: (length, share) in order. tokens: tokens per step. rate: the highest learning rate of the matrices. warmup, decay: shares.
    rounded_from: from which share on every other step is a short one on rounded weights. variants: renamed copies of the text.
    """

    stages: tuple[tuple[int, float], ...] = ((2048, 0.40), (8192, 0.22), (32768, 0.38))
    tokens: int = 131072
    minutes: float = 4.6
    steps: int | None = None
    seed: int = 0
    rate: float = 4e-3
    embedding_rate: float = 3e-3
    warmup: float = 0.02
    decay: float = 0.55
    rounded_from: float = 0.35
    variants: int = 5

    def rate_at(self, share: float) -> float:
        """The learning rate's factor at a share of the minutes: up in a line, level, down in a line to 2 %."""
        return min(1.0, share / self.warmup, max(0.02, (1 - share) / self.decay))

    def stage_at(self, share: float) -> int:
        done = 0.0
        for n, (_, part) in enumerate(self.stages):
            done += part
            if share < done:
                return n
        return len(self.stages) - 1


def fastest_attention(q: Tensor) -> tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The quickest of torch's attention kernels for q's shape, forward and backward, measured on the spot."""
    times: dict[str, float] = {}
    kernels: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def attend(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        try:
            for _ in range(2):
                attend(q, q, q).sum().backward()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(3):
                attend(q, q, q).sum().backward()
            torch.cuda.synchronize()
        except RuntimeError:
            continue
        times[backend.name] = time.perf_counter() - start
        kernels[backend.name] = attend
    best = min(times, key=times.__getitem__)
    return best, kernels[best]


def train(
    model: Decoder,
    tokenizer: Any,
    stream: corpus.Ids,
    recipe: Recipe,
    out: Path,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Trains in place for the recipe's minutes, saving every 45 seconds, and returns the history that loss.json holds."""
    torch.manual_seed(recipe.seed)
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=recipe.rate),
        torch.optim.AdamW(others, lr=recipe.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda),
    ]
    rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    history: dict[str, Any] = {
        "machine": machine(device),
        "recipe": asdict(recipe),
        "shape": asdict(model.shape),
        "attention": {},
        "columns": ["seconds", "tokens", "length", "rate", "loss", "rounded_kl"],
        "points": [],
    }
    workers = min(7, (os.cpu_count() or 2) - 2) if cuda else 0

    def loader(length: int, stage: int) -> Any:
        data = Batches(tokenizer, stream, max(1, recipe.tokens // length), length, recipe.seed, stage)
        return torch.utils.data.DataLoader(
            data, batch_size=None, num_workers=workers, pin_memory=cuda, prefetch_factor=8 if workers else None
        )

    steps = tokens = 0
    stage = -1
    batches: Iterator[tuple[Tensor, Tensor]] = iter(())
    shortest = recipe.stages[0][0]
    short_batches = iter(loader(shortest, -1))
    attentions: dict[int, Any] = {}
    running: list[Tensor] = []
    divergence: list[Tensor] = []
    start = saved = time.monotonic()
    budget = recipe.minutes * 60
    while True:
        share = steps / recipe.steps if recipe.steps else (time.monotonic() - start) / budget
        if share >= 1 and steps:
            break
        if recipe.stage_at(share) != stage or stage < 0:
            stage = recipe.stage_at(share)
            length = recipe.stages[stage][0]
            batches = iter(loader(length, stage))
            if cuda:
                like = torch.randn(
                    max(1, recipe.tokens // length),
                    length,
                    model.shape.num_attention_heads,
                    model.shape.head_dim,
                    device=device,
                    dtype=model.dtype,
                )
                history["attention"][str(length)], attentions[length] = fastest_attention(
                    like.transpose(1, 2).requires_grad_()
                )
        round_now = steps == 0 or (share >= recipe.rounded_from and steps % 2 == 1)
        if cuda:
            model.attention = attentions[shortest if round_now else length]
        ids, weights = (t.to(device, non_blocking=True) for t in next(short_batches if round_now else batches))
        ids, weights = ids.long(), weights[:, 1:]
        if round_now:
            rounding = functools.partial(fake_int4, noise=steps % 4 == 3)
            losses, apart = model.rounded_losses(ids[:, :-1], ids[:, 1:], rounding)
            loss = (losses * weights).sum() / weights.sum() + 2 * apart.mean()
            divergence.append(apart.detach().mean())
        else:
            losses = model.losses(ids[:, :-1], ids[:, 1:])
            loss = (losses * weights).sum() / weights.sum()
            running.append(loss.detach())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        for optimizer, full in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, full, strict=True):
                group["lr"] = rate * recipe.rate_at(share)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps += 1
        tokens += weights.numel()
        if steps == 2:
            # The first step of either sort compiles; the minutes are the training's.
            loss.item()
            start = saved = time.monotonic() if cuda else start
        if len(running) >= (10 if cuda else 1):
            mean = torch.stack(running).mean().item()
            apart_mean = round(torch.stack(divergence).mean().item(), 4) if divergence else None
            running.clear()
            divergence.clear()
            if not math.isfinite(mean):
                raise RuntimeError(
                    f"the loss is {mean} after {steps} steps: lower --rate, the last good checkpoint is in {out}"
                )
            now = time.monotonic()
            history["points"].append(
                [round(now - start, 1), tokens, length, round(recipe.rate_at(share), 4), round(mean, 4), apart_mean]
            )
            report(
                {
                    "step": steps,
                    "share": min(1.0, share),
                    "length": length,
                    "loss": mean,
                    "kl": apart_mean,
                    "rate": tokens / (now - start + 1e-9),
                }
            )
            if now - saved > 45:
                save(model, out, history)
                saved = time.monotonic()
    history["steps"], history["tokens"] = steps, tokens
    save(model, out, history)
    return history


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
    }
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
        with contextlib.suppress(OSError):
            version = re.search(r"\d+(\.\d+)+", Path("/proc/driver/nvidia/version").read_text())
            found["driver"] = version[0] if version else "unknown"
    return found


# --- evaluation ---------------------------------------------------------------------------------------------------------------


def _draw_needle(task: tuple[str, bytes, int, float, int]) -> corpus.NeedleTokens:
    tokenizer_json, seed, length, depth, distractors = task
    return corpus.needle_tokens(seed, length, depth, _tokenizer_of(tokenizer_json), distractors=distractors)


@functools.lru_cache(maxsize=1)
def _tokenizer_of(tokenizer_json: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(tokenizer_json)


@torch.no_grad()
def passkey_recall(
    model: Decoder,
    tokenizer: Any,
    lengths: tuple[int, ...],
    depths: tuple[float, ...],
    documents: int,
    distractors: int,
    seed: bytes,
    processes: int = 1,
) -> dict[str, list[float]]:
    """The share of needle documents whose whole key is the model's first choice, token by token: {length: [share per depth]}."""
    device = next(model.parameters()).device
    cells = [(length, depth) for length in lengths for depth in depths]
    tasks = [
        (tokenizer.to_str(), seed + bytes([d]), n - 8, depth, distractors)
        for n, depth in cells
        for d in range(documents)
    ]
    if processes > 1:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            drawn = pool.map(_draw_needle, tasks, chunksize=4)
    else:
        drawn = [_draw_needle(task) for task in tasks]
    grid: dict[str, list[float]] = {str(length): [] for length in lengths}
    for cell, (length, _) in enumerate(cells):
        right = 0
        at_once = max(1, 131072 // length)
        mine = drawn[cell * documents : (cell + 1) * documents]
        for first in range(0, documents, at_once):
            some = mine[first : first + at_once]
            ids = torch.tensor(
                np.stack([np.concatenate((d.prompt, d.answer)) for d in some]), device=device, dtype=torch.long
            )
            key = len(some[0].answer)
            right += int((model.logits(ids[:, :-1], key).argmax(-1) == ids[:, -key:]).all(1).sum())
        grid[str(length)].append(right / documents)
    return grid


@torch.no_grad()
def held_out_loss(model: Decoder, tokenizer: Any, length: int, documents: int, seed: bytes) -> dict[str, float]:
    """Loss on files that training left out, as they are, and on the judge's text from all files; nats per token, and characters per token."""
    device = next(model.parameters()).device
    unseen = [f for f in corpus.source_files() if corpus.held_out(f)]
    pieces = corpus.Pieces(tokenizer)
    texts = [corpus.read_source(f) for f in unseen]
    stream = pieces.filler(corpus.encode_sources(texts, pieces))
    rng = corpus.generator(seed, "held-out")
    plain = [
        np.concatenate(([pieces.bos], stream.draw(rng, min(length, len(stream.ids) // 2)))) for _ in range(documents)
    ]
    drawn = [corpus.evaluation_tokens(seed + bytes([n]), length, tokenizer) for n in range(documents)]

    def loss(rows: list[Any], masks: list[Any]) -> float:
        total, count = 0.0, 0
        for row, mask in zip(rows, masks, strict=True):
            ids = torch.tensor(row, device=device, dtype=torch.long)[None]
            chosen = torch.tensor(mask[1:], device=device)
            total += float(model.losses(ids[:, :-1], ids[:, 1:])[0][chosen].sum())
            count += int(chosen.sum())
        return total / count

    return {
        "held_out_files": loss(plain, [np.ones(len(p), bool) for p in plain]),
        "evaluation_text_scored": loss([d.ids for d in drawn], [d.scored for d in drawn]),
        "characters_per_token": sum(map(len, texts)) / len(stream.ids),
    }


def evaluate(
    model: Decoder, tokenizer: Any, *, longest: int, documents: int, processes: int = 1, seed: bytes = b"evaluation"
) -> dict[str, Any]:
    """Passkey recall over length and depth with and without distractors, and losses: what eval.json holds."""
    model.eval()
    lengths = tuple(n for n in (256, 512, 2048, 8192, 16384, 32768) if n <= longest)
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)
    start = time.monotonic()
    found: dict[str, Any] = {"depths": depths, "documents_per_cell": documents}
    for distractors in (3, 0):
        found[f"recall_{distractors}_distractors"] = passkey_recall(
            model, tokenizer, lengths, depths, documents, distractors, seed, processes
        )
    found["loss"] = held_out_loss(model, tokenizer, min(longest, 4096), documents, seed)
    found["seconds"] = round(time.monotonic() - start, 1)
    return found


def proven_context(found: dict[str, Any]) -> int:
    """The longest length up to which every cell of both recall grids is at least 0.95; 0 when none is."""
    grids = (found["recall_3_distractors"], found["recall_0_distractors"])
    longest = 0
    for length in sorted(map(int, grids[0])):
        if min(min(grid[str(length)]) for grid in grids) < 0.95:
            break
        longest = length
    return longest


# --- command line -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar where there is a terminal, else a line every ten seconds."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("training", total=1.0, words="")
            yield lambda p: bar.update(
                task,
                completed=p["share"],
                words=f"loss {p['loss']:.3f}  length {p['length']}  {p['rate']:,.0f} tokens/s",
            )
        return
    last = 0.0

    def line(p: dict[str, Any]) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(
                f"{p['share']:6.1%}  step {p['step']}  length {p['length']}  loss {p['loss']:.3f}  rounded KL {p['kl']}  {p['rate']:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )

    yield line


def parse_stages(text: str) -> tuple[tuple[int, float], ...]:
    """ "2048:0.5,8192:0.5" -> ((2048, 0.5), (8192, 0.5)); the shares are scaled to add up to one."""
    try:
        pairs = [(int(length), float(share)) for length, share in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: LENGTH:SHARE,LENGTH:SHARE,... is expected, such as 2048:0.5,8192:0.5"
        ) from None
    whole = sum(share for _, share in pairs)
    return tuple((length, share / whole) for length, share in pairs)


SMOKE_SHAPE = Shape(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
)
SMOKE_RECIPE = Recipe(stages=((256, 1.0),), tokens=2048, minutes=0.2, variants=0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.train_reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; made if missing")
    parser.add_argument(
        "--resume",
        type=Path,
        help="folder of a checkpoint to go on from: weights and tokenizer, the optimizer warms up again",
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument(
        "--library", type=Path, help="folder of a standard library to train on (default: this interpreter's own)"
    )
    parser.add_argument("--steps", type=int, help="train for so many steps instead, which a second run repeats")
    parser.add_argument(
        "--minutes", type=float, help="minutes of training, start and evaluation not counted (default 4.6)"
    )
    parser.add_argument(
        "--stages",
        type=parse_stages,
        help="lengths and their shares of the minutes (default 2048:0.4,8192:0.22,32768:0.38)",
    )
    parser.add_argument("--rate", type=float, help="highest learning rate of the matrices (default 0.004)")
    parser.add_argument("--warmup", type=float, help="share of the minutes (default 0.02)")
    parser.add_argument("--decay", type=float, help="share of the minutes (default 0.55)")
    parser.add_argument(
        "--rounded-from",
        type=float,
        help="share of the minutes from which every other step rounds weights to int4 (default 0.35)",
    )
    parser.add_argument("--variants", type=int, help="renamed copies of the library to train on (default 5)")
    parser.add_argument("--tokens", type=int, help="tokens a step (default 131072)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny model for 12 seconds, to see that everything works"
    )
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda, and torch sees no GPU: use --device cpu, or install a driver and a CUDA build of torch"
        )

    recipe = SMOKE_RECIPE if args.smoke else Recipe()
    chosen = {
        name: getattr(args, name)
        for name in (
            "minutes",
            "stages",
            "rate",
            "warmup",
            "decay",
            "rounded_from",
            "variants",
            "tokens",
            "seed",
            "steps",
        )
    }
    recipe = replace(recipe, **{name: value for name, value in chosen.items() if value is not None})
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    cuda = args.device == "cuda"
    processes = (os.cpu_count() or 1) if cuda else 1

    began = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {what}", file=sys.stderr, flush=True)

    from tokenizers import Tokenizer

    files = [f for f in corpus.source_files(args.library, tests=True) if not corpus.held_out(f)]
    if args.smoke:
        files = files[::25]
    shape = SMOKE_SHAPE if args.smoke else Shape()
    source = args.tokenizer or (args.resume / "tokenizer.json" if args.resume else None)
    tokenizer = (
        Tokenizer.from_file(str(source))
        if source
        else train_tokenizer([corpus.read_source(f) for f in files], shape.vocab_size)
    )
    tokenizer.save(str(out / "tokenizer.json"))
    say(f"tokenizer of {tokenizer.get_vocab_size()} tokens")
    stream = training_stream(tokenizer, files, recipe.seed, recipe.variants, processes)
    say(f"{len(stream):,} tokens of text from {len(files)} files")

    if args.resume:
        model = load(args.resume, undo_spread=True)
    else:
        model = Decoder(shape)
        model.initialize(recipe.seed)
    model.to(args.device)
    if cuda:
        torch.set_float32_matmul_precision("high")
        model.dtype = torch.bfloat16
        model.compile()
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    with progress() as report:
        history = train(model, tokenizer, stream, recipe, out, report)
    say(f"trained {history['steps']} steps, {history['tokens']:,} tokens, last loss {history['points'][-1][4]}")
    served = load(out).to(args.device)
    served.dtype = model.dtype
    found = evaluate(
        served,
        tokenizer,
        longest=max(n for n, _ in recipe.stages),
        documents=2 if args.smoke else 16,
        processes=processes,
    )
    replace_file(out / "eval.json", lambda p: p.write_text(json.dumps(found, indent=1) + "\n"))
    say("evaluated: " + json.dumps(found))
    # What the config promises is what recall proves, so that nobody judges with a length at which the model itself is lost.
    promised = replace(model.shape, max_position_embeddings=proven_context(found) or min(n for n, _ in recipe.stages))
    replace_file(out / "config.json", lambda p: p.write_text(json.dumps(promised.config(), indent=2) + "\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
