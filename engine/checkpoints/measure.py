"""Measures a reference checkpoint as a judge of modules: `python -m engine.checkpoints.measure [DIR]` writes plants.json, loss.svg and
card.md; `--card` writes the last two from what was measured before.

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
        i = torch.arange(q.shape[2], device=q.device)[:, None]
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
    device = next(model.parameters()).device
    return [model.logits(torch.tensor(t.ids, dtype=torch.long, device=device)[None])[0, :-1] for t in texts]


@torch.no_grad()
def compare(model: Decoder, texts: list[corpus.EvaluationText], reference: list[Tensor]) -> dict[str, float]:
    """How far the model is from the reference logits on the texts' scored positions:
    perplexity: relative change; kl: mean, nats; top1: share of equal first choices; decided: the same share where the reference's
    first choice leads the second by more than 0.1 nats.
    """
    change = kl = same = decided = decided_same = count = 0.0
    for text, expected in zip(texts, reference, strict=True):
        ids = torch.tensor(text.ids, dtype=torch.long, device=expected.device)
        scored = torch.tensor(text.scored[1:], device=expected.device)
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
    return {
        "perplexity": math.expm1(change / count),
        "kl": kl / count,
        "top1": same / count,
        "decided": decided_same / decided,
    }


def best_class(found: dict[str, float]) -> str:
    """The strictest class whose limits hold; E by perplexity and top-1 alone."""
    for name, (perplexity, kl, top1) in LIMITS.items():
        if found["perplexity"] <= perplexity and not found["kl"] > kl and found["top1"] >= top1:
            return name
    return "none"


def measure(directory: Path, *, documents: int, tokens: int, seed: bytes, device: str = "cpu") -> dict[str, Any]:
    """Every plant's metrics, needle recall where it matters, and what they were measured on."""
    model = load(directory).eval().to(device)
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
        "machine": machine(torch.device(device)),
        "documents": documents,
        "tokens": tokens,
        "seed": seed.hex(),
        "scored": sum(float(t.scored.mean()) for t in texts) / documents,
        "seconds": round(time.monotonic() - start, 1),
        "plants": plants,
        "heads": heads,
    }


def _fp8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def _tokenizer(directory: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory / "tokenizer.json"))


# --- the card -----------------------------------------------------------------------------------------------------------------


def loss_svg(history: dict[str, Any], width: int = 720, height: int = 300) -> str:
    """The training loss over tokens as an SVG, a label where the length of documents changes."""
    columns = history["columns"]
    tokens, lengths, losses = ([p[columns.index(c)] for p in history["points"]] for c in ("tokens", "length", "loss"))
    left, top, right, bottom = 48, 16, 12, 36
    most, highest = tokens[-1], max(losses)

    def place(token: float, loss: float) -> str:
        x = left + (width - left - right) * token / most
        return f"{x:.1f},{top + (height - top - bottom) * (1 - loss / highest):.1f}"

    marks = []
    for value in range(int(highest) + 1):
        x, y = place(0, value).split(",")
        marks.append(f'<line x1="{left}" x2="{width - right}" y1="{y}" y2="{y}" stroke="#8884" />')
        marks.append(f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{value}</text>')
    for n, length in enumerate(lengths):
        if n == 0 or length != lengths[n - 1]:
            x = place(tokens[n] if n else 0, 0).split(",")[0]
            marks.append(
                f'<line x1="{x}" x2="{x}" y1="{top}" y2="{height - bottom}" stroke="#888" stroke-dasharray="3 3" />'
            )
            marks.append(f'<text x="{float(x) + 4:.1f}" y="{top + 12}">length {length:,}</text>')
    line = " ".join(place(t, loss) for t, loss in zip(tokens, losses, strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" font-size="12" '
        f'fill="#888"><title>Training loss in nats per weighted token over {most / 1e6:.0f} million tokens</title>{"".join(marks)}'
        f'<polyline points="{line}" fill="none" stroke="#2a7de1" stroke-width="1.5" />'
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">tokens seen, 0 to {most / 1e6:.0f} million</text></svg>\n'
    )


def _recall_table(found: dict[str, Any], which: str) -> list[str]:
    grid = found[which]
    rows = [f"| {int(length):,} | " + " | ".join(f"{share:.0%}" for share in grid[length]) + " |" for length in grid]
    return [
        "| tokens | " + " | ".join(f"depth {d:g}" for d in found["depths"]) + " |",
        "| ---: |" + " ---: |" * len(found["depths"]),
        *rows,
    ]


def card(directory: Path) -> str:
    """card.md from config.json, loss.json, eval.json, plants.json and, if there is one, notes.md."""
    config, history, evaluation, plants = (
        json.loads((directory / name).read_text()) for name in ("config.json", "loss.json", "eval.json", "plants.json")
    )
    trained, measured, recipe = history["machine"], plants["machine"], history["recipe"]
    stages = ", ".join(f"{share:.0%} at {length:,}" for length, share in recipe["stages"])
    rows = []
    for name, f in plants["plants"].items():
        needles = f"{f['needles']:.0%}" if "needles" in f else ""
        rows.append(
            f"| {name} | {f['perplexity']:+.2%} | {f['kl']:.5f} | {f['top1']:.2%} | {f['decided']:.2%} | {needles} | {f['class']} |"
        )
    # What one run had of its own and no figure shows.
    notes = (directory / "notes.md").read_text() if (directory / "notes.md").exists() else ""
    weak = [name for name, f in plants["heads"].items() if f["top1"] >= LIMITS["E"][2]]
    loss = evaluation["loss"]
    context = config["max_position_embeddings"]
    return f"""# The quality model

A Llama-shaped decoder of {sum(p.numel() for p in load(directory).parameters()):,} parameters that the judge questions to learn what a module does to a model: {config["num_hidden_layers"]} layers,
hidden size {config["hidden_size"]}, {config["num_attention_heads"]} query and {config["num_key_value_heads"]} key-value heads of {config["head_dim"]}, MLP {config["intermediate_size"]}, tied embeddings, RoPE base {config["rope_theta"]:,.0f}, vocabulary {config["vocab_size"]}, context {context:,} tokens
(about {int(context * loss["characters_per_token"]):,} characters), bf16. It knows Python source and how to look things up. It is no use for anything else.

- **Recipe**: `python -m engine.train_reference --out DIR --minutes {recipe["minutes"]} --seed {recipe["seed"]}`; resumable, seeded in its data and its start. Lengths follow
  the share of the minutes, so a run is repeated in kind and not bit by bit; with `--steps` it is repeated.
- **Text**: the source of the CPython standard library with its tests ({recipe["variants"]} copies with other identifiers besides the original; Python Software Foundation
  License; not committed), one file in twenty held out, mixed with tasks made of nothing but a seed (`engine/corpus.py`): needles, recall,
  repeated runs and passages, brackets.
- **Training**: {history["tokens"]:,} tokens in {history["steps"]:,} steps and {recipe["minutes"]} minutes ({stages} tokens), {recipe["tokens"]:,} tokens a step, Muon for matrices (rate {recipe["rate"]})
  and AdamW for the rest (rate {recipe["embedding_rate"]}). From {recipe["rounded_from"]:.0%} of the time on, every other step runs on weights rounded to int4 and is drawn to the
  unrounded model's predictions: a small model is brittle under rounding where a large one is not.
- **Machine**: {trained["device"]}, driver {trained.get("driver", "none")}, CUDA {trained.get("cuda", "none")}, torch {trained["torch"]}, Python {trained["python"]}.
- **Loss**, nats per token: {loss["held_out_files"]:.3f} on held-out files as they are, {loss["evaluation_text_scored"]:.3f} on the scored tokens of the judge's text; {loss["characters_per_token"]:.2f} characters a token on held-out files.
{notes}
![training loss](loss.svg)

Channel groups of 64 are scaled by powers of two against the norms that feed them (`spread_channels`): no output changes by one bit, and int4
without groups loses the small channels, as it does in large models that have a few channels far larger than the rest.

## Passkey recall

Share of documents whose whole key ({corpus.KEY_WORDS} words) is the model's first choice, {evaluation["documents_per_cell"]} a cell, three other names with keys of their own in each:

{chr(10).join(_recall_table(evaluation, "recall_3_distractors"))}

With no other names:

{chr(10).join(_recall_table(evaluation, "recall_0_distractors"))}

The context in config.json is the longest length up to which every cell of both reaches 95 %.

## Plants

Against the same weights in float32, {plants["documents"]} drawn documents of {plants["tokens"]:,} tokens ({plants["scored"]:.0%} of them scored), needles at 1,024 tokens;
`python -m engine.checkpoints.measure`, torch {measured["torch"]}, {measured["device"]}. "Decided" is top-1 agreement where the first choice leads by more than 0.1 nats. "Class" is the strictest
whose limits hold (E: 0.1 %, 99.9 %; Q8: 1.2 %, 0.01, 98 %; Q4: 6.5 %, 0.08, 93 %).

| plant | perplexity | mean KL | top-1 | decided | needles | class |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
{chr(10).join(rows)}

{"Every head matters: zeroing any of the" if not weak else f"Heads whose loss stays above class E's top-1 limit: {', '.join(weak)} (layer.head), of"} {len(plants["heads"])} heads{" takes top-1 agreement under class E's limit." if not weak else "."}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.checkpoints.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, nargs="?", default=corpus.REFERENCE)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of each document")
    parser.add_argument("--seed", default="plants")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--card", action="store_true", help="measure nothing, write the card anew")
    args = parser.parse_args(arguments)
    if not args.card:
        found = measure(
            args.directory,
            documents=args.documents,
            tokens=args.tokens,
            seed=args.seed.encode(),
            device=args.device,
        )
        (args.directory / "plants.json").write_text(json.dumps(found, indent=1) + "\n")
    history = json.loads((args.directory / "loss.json").read_text())
    (args.directory / "loss.svg").write_text(loss_svg(history))
    (args.directory / "card.md").write_text(card(args.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
