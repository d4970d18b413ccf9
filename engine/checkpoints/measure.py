"""Measures a reference checkpoint as a judge of modules: `python -m engine.checkpoints.measure [DIR]` writes plants.json, loss.svg and
the tables of card.md.

A plant is a module that is wrong, or coarse, in a known way. A model is fit to judge with when every wrong one moves a metric beyond
the limits of its quality class and every honest one stays within. Plants are measured against the same model in float32 on the
same drawn text.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine import corpus
from engine.train_reference import Decoder, load, machine, passkey_recall

# Quality classes: relative perplexity, mean KL in nats, top-1 agreement. Class E's limit on KL is twice the noise floor instead.
LIMITS = {"E": (0.001, math.nan, 0.999), "Q8": (0.012, 0.01, 0.98), "Q4": (0.065, 0.08, 0.93)}

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked(allowed: Callable[[Tensor, Tensor], Tensor]) -> Attention:
    """Attention where query i sees key j if `allowed(i, j)`."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i = torch.arange(q.shape[2])[:, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed(i, i.T))

    return attend


def rounded(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """Symmetric rounding to nearest with a scale per `group` inputs, or per row if None, given back as float."""
    most = 2 ** (bits - 1) - 1
    grouped = weight.unflatten(-1, (-1, group or weight.shape[-1]))
    scale = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-12) / most
    return ((grouped / scale).round().clamp(-most - 1, most) * scale).flatten(-2)


@contextmanager
def weights(model: Decoder, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The blocks' matrices changed for a while."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    parameters = dict(model.named_parameters())
    for name, before in kept.items():
        parameters[name].data.copy_(change(before))
    yield
    for name, before in kept.items():
        parameters[name].data.copy_(before)


@contextmanager
def attention(model: Decoder, instead: Attention) -> Iterator[None]:
    kept, model.attention = model.attention, instead
    yield
    model.attention = kept


@contextmanager
def rope_base(model: Decoder, base: float) -> Iterator[None]:
    kept, model.shape = model.shape, replace(model.shape, rope_theta=base)
    yield
    model.shape = kept


@contextmanager
def bfloat16(model: Decoder) -> Iterator[None]:
    model.dtype = torch.bfloat16
    yield
    model.dtype = torch.float32


@contextmanager
def head_zeroed(model: Decoder, layer: int, head: int) -> Iterator[None]:
    """One query head's output lost, as a kernel that skips a head loses it."""
    o = model.model.layers[layer].self_attn.o_proj.weight
    columns = slice(head * model.shape.head_dim, (head + 1) * model.shape.head_dim)
    kept = o.detach()[:, columns].clone()
    o.data[:, columns] = 0
    yield
    o.data[:, columns] = kept


@torch.no_grad()
def reference_logits(model: Decoder, texts: list[corpus.EvaluationText]) -> list[Tensor]:
    return [model.logits(torch.tensor(t.ids, dtype=torch.long)[None])[0, :-1] for t in texts]


@torch.no_grad()
def compare(model: Decoder, texts: list[corpus.EvaluationText], reference: list[Tensor]) -> dict[str, float]:
    """How far the model is from the reference logits on the texts' scored positions:
    perplexity: relative change; kl: mean, nats; top1: share of equal first choices; decided: the same share where the reference's
    first choice leads the second by more than 0.1 nats.
    """
    change = kl = same = decided = decided_same = count = 0.0
    for text, expected in zip(texts, reference, strict=True):
        ids = torch.tensor(text.ids, dtype=torch.long)
        scored = torch.tensor(text.scored[1:])
        got = F.log_softmax(model.logits(ids[None])[0, :-1][scored], -1)
        want = F.log_softmax(expected[scored], -1)
        target = ids[1:][scored][:, None]
        change += float((want.gather(1, target) - got.gather(1, target)).sum())
        kl += float((want.exp() * (want - got)).sum())
        equal = want.argmax(-1) == got.argmax(-1)
        first, second = want.topk(2).values.unbind(-1)
        lead = first - second > 0.1
        same += float(equal.sum())
        decided += float(lead.sum())
        decided_same += float((equal & lead).sum())
        count += len(target)
    return {"perplexity": math.expm1(change / count), "kl": kl / count, "top1": same / count, "decided": decided_same / decided}


def best_class(found: dict[str, float]) -> str:
    """The strictest class whose limits hold; E by perplexity and top-1 alone."""
    for name, (perplexity, kl, top1) in LIMITS.items():
        if found["perplexity"] <= perplexity and not found["kl"] > kl and found["top1"] >= top1:
            return name
    return "none"


def measure(directory: Path, *, documents: int, tokens: int, seed: bytes) -> dict[str, Any]:
    """Every plant's metrics, needle recall where it matters, and what they were measured on."""
    model = load(directory).eval()
    tokenizer = corpus.reference_tokenizer() if directory == corpus.REFERENCE else _tokenizer(directory)
    texts = [corpus.evaluation_tokens(seed + bytes([n]), tokens, tokenizer) for n in range(documents)]
    reference = reference_logits(model, texts)
    start = time.monotonic()
    plants: dict[str, dict[str, float]] = {}

    def plant(name: str, how: Any, needles: bool = False) -> None:
        with how:
            plants[name] = compare(model, texts, reference)
            if needles:
                grid = passkey_recall(model, tokenizer, (1024,), (0.1, 0.5, 0.9), 4, 3, seed)
                plants[name]["needles"] = sum(grid["1024"]) / 3
        print(f"{name:32} " + "  ".join(f"{k} {v:.5f}" for k, v in plants[name].items()), file=sys.stderr, flush=True)

    causal = masked(lambda i, j: j <= i)
    plant("none (another kernel)", attention(model, causal), True)
    plant("bf16 arithmetic", bfloat16(model), True)
    plant("int8 per channel", weights(model, lambda w: rounded(w, 8, None)), True)
    plant("fp8 e4m3 per channel", weights(model, _fp8), True)
    plant("int4 groups of 64", weights(model, lambda w: rounded(w, 4, 64)), True)
    plant("int4 per channel", weights(model, lambda w: rounded(w, 4, None)), True)
    plant("mask off by one: sees the next", attention(model, masked(lambda i, j: j <= i + 1)), True)
    plant("mask off by one: not itself", attention(model, masked(lambda i, j: (j < i) | ((i == 0) & (j == 0)))), True)
    plant("oldest half of the KV dropped", attention(model, masked(lambda i, j: (j <= i) & (j >= (i + 1) // 2))), True)
    plant("RoPE base 10,000", rope_base(model, 10_000.0), True)
    plant("RoPE base 500,000", rope_base(model, 500_000.0), True)
    fewer, known = texts[: max(1, documents // 4)], reference[: max(1, documents // 4)]
    heads = {}
    for layer in range(model.shape.num_hidden_layers):
        for head in range(model.shape.num_attention_heads):
            with head_zeroed(model, layer, head):
                heads[f"{layer}.{head}"] = compare(model, fewer, known)
    least = min(heads, key=lambda name: heads[name]["kl"])
    middle = sorted(heads, key=lambda name: heads[name]["kl"])[len(heads) // 2]
    plants[f"one head zeroed, the least ({least})"] = heads[least]
    plants[f"one head zeroed, the median ({middle})"] = heads[middle]
    for found in plants.values():
        found_class = best_class(found)
        found["class"] = found_class  # type: ignore[assignment]
    return {
        "machine": machine(torch.device("cpu")), "documents": documents, "tokens": tokens, "seed": seed.hex(),
        "scored": sum(float(t.scored.mean()) for t in texts) / documents,
        "seconds": round(time.monotonic() - start, 1), "plants": plants, "heads": heads,
    }


def _fp8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def _tokenizer(directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engine.checkpoints.measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=corpus.REFERENCE)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of each document")
    parser.add_argument("--seed", default="plants")
    args = parser.parse_args(arguments)
    found = measure(args.directory, documents=args.documents, tokens=args.tokens, seed=args.seed.encode())
    (args.directory / "plants.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
