"""How far a model with a swapped module is from itself: perplexity, KL divergence, top-1 agreement, needle recall.

Pure functions over logits, and the classes of DESIGN section 6 as data. Whoever computes the logits (the judge's engine with
a slot's calls elsewhere, or any other) is no concern of this module.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CLASS_ORDER = ("E", "Q8", "Q4")
BLOCK = 32
"""Neighbouring tokens err together; standard errors come from means over blocks of this many."""
KL_FLOOR = 1e-6
"""Mean KL below which two models are the same to any reader, in nats; a noise floor is never taken as less."""


class ScoresText(Protocol):
    """What quality is measured through: `engine.generate.Engine`, or any stand-in."""

    def logits(self, texts: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
        """float32 [T, vocab] for each text of T tokens: row t scores the token that follows `text[: t + 1]`."""


@dataclass(frozen=True)
class Limits:
    """What a class allows. `kl_is_noise`: the limit of the mean KL is that many times the reference's own noise floor."""

    delta_ppl: float
    mean_kl: float
    top1: float
    kl_is_noise: bool = False
    needle: float | None = None


LIMITS: Mapping[str, Limits] = {
    "E": Limits(0.001, 2.0, 0.999, kl_is_noise=True),
    "Q8": Limits(0.012, 0.01, 0.98),
    "Q4": Limits(0.065, 0.08, 0.93),
    "S": Limits(0.01, 0.02, 0.98, needle=0.95),
}


@dataclass(frozen=True)
class Metric:
    """An estimate with a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """What was measured over `tokens` scored tokens.

    delta_ppl: relative change of perplexity, exp(mean(nll - nll of the reference)) - 1. mean_kl: mean KL(reference || subject) in nats a
    token. top1: share of tokens where both find the same token most likely. first_difference: (text, position) of the first token
    where they do not, with the reference's margin there in nats.
    """

    tokens: int
    perplexity: float
    delta_ppl: Metric
    mean_kl: Metric
    top1: Metric
    first_difference: tuple[int, int, float] | None = None


@dataclass(frozen=True)
class Needle:
    """A prompt of tokens, the tokens that should follow, and the cell of the grid that it belongs to."""

    length: int
    depth: float
    prompt: Sequence[int]
    answer: Sequence[int]


class _Blocks:
    """Mean of a per-token quantity with a standard error from block means."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        self.parts.extend(piece for piece in values.double().split(BLOCK) if piece.numel())

    def metric(self) -> Metric:
        weights = torch.tensor([part.numel() for part in self.parts], dtype=torch.float64)
        means = torch.stack([part.mean() for part in self.parts])
        total = float(weights.sum())
        mean = float((means * weights).sum()) / total
        if len(self.parts) < 2:
            return Metric(mean, -math.inf, math.inf)
        shares = weights / total
        spread = float((shares.square() * (means - mean).square()).sum()) * len(self.parts) / (len(self.parts) - 1)
        half = 1.96 * math.sqrt(spread)
        return Metric(mean, mean - half, mean + half)


def compare(
    reference: Iterable[Tensor],
    subject: Iterable[Tensor],
    texts: Sequence[Sequence[int]],
    scored: Sequence[Tensor] | None = None,
) -> Quality:
    """Quality of `subject`'s logits against `reference`'s, each float [T, vocab] for every text.

    `scored`: bool[T] for every text, true where the token itself counts; all by default. The first token of a text is never
    predicted. Raises ValueError where a logit of the subject is not finite: no average can hide that.
    """
    nll, kl, agree = _Blocks(), _Blocks(), _Blocks()
    total = 0
    base = 0.0
    first: tuple[int, int, float] | None = None
    for number, (ours, theirs, text) in enumerate(zip(reference, subject, texts, strict=True)):
        if not bool(torch.isfinite(theirs).all()):
            row = int((~torch.isfinite(theirs)).any(-1).to(torch.uint8).argmax())
            raise ValueError(f"The model's scores are not finite from token {row} of text {number} on.")
        keep = torch.ones(len(text), dtype=torch.bool) if scored is None else scored[number].bool()
        keep = keep[1:]
        targets = torch.tensor(list(text[1:]), dtype=torch.int64)[keep]
        a = torch.log_softmax(ours[:-1][keep].float(), -1)
        b = torch.log_softmax(theirs[:-1][keep].float(), -1)
        own = -a.gather(1, targets[:, None])[:, 0]
        nll.add(-b.gather(1, targets[:, None])[:, 0] - own)
        kl.add((a.exp() * (a - b)).sum(-1).clamp_(min=0))
        same = a.argmax(-1) == b.argmax(-1)
        agree.add(same.double())
        if first is None and not bool(same.all()):
            at = int((~same).to(torch.uint8).argmax())
            top = a[at].topk(2).values
            position = int(keep.nonzero()[at, 0]) + 1
            first = (number, position, float(top[0] - top[1]))
        total += len(targets)
        base += float(own.sum())
    drift = nll.metric()
    share = agree.metric()
    low, high = _wilson(share.value, total)
    return Quality(
        tokens=total,
        perplexity=math.exp(base / total),
        delta_ppl=Metric(*(math.expm1(value) for value in (drift.value, drift.low, drift.high))),
        mean_kl=kl.metric(),
        top1=Metric(share.value, low, high),
        first_difference=first,
    )


def classes_met(quality: Quality, noise_floor: float, needle_ratio: float | None = None) -> tuple[str, ...]:
    """The classes whose limits the measured values keep, the strictest first."""
    return tuple(name for name in LIMITS if not shortfalls(name, quality, noise_floor, needle_ratio))


def shortfalls(name: str, quality: Quality, noise_floor: float, needle_ratio: float | None = None) -> list[str]:
    """What keeps the quality from class `name`, a sentence each."""
    limits = LIMITS[name]
    found = []
    if quality.delta_ppl.value > limits.delta_ppl:
        found.append(
            f"perplexity rises by {quality.delta_ppl.value:.2%} [{quality.delta_ppl.low:.2%}, {quality.delta_ppl.high:.2%}]; "
            f"class {name} allows {limits.delta_ppl:.1%}"
        )
    kl = limits.mean_kl * max(noise_floor, KL_FLOOR) if limits.kl_is_noise else limits.mean_kl
    if quality.mean_kl.value > kl:
        found.append(
            f"the mean KL divergence is {quality.mean_kl.value:.3g} [{quality.mean_kl.low:.3g}, {quality.mean_kl.high:.3g}] nats; "
            f"class {name} allows {kl:.3g}"
        )
    if quality.top1.value < limits.top1:
        found.append(
            f"the most likely token agrees for {quality.top1.value:.2%} [{quality.top1.low:.2%}, {quality.top1.high:.2%}] of "
            f"{quality.tokens:,} tokens; class {name} asks for {limits.top1:.1%}"
        )
    if limits.needle is not None and needle_ratio is not None and needle_ratio < limits.needle:
        found.append(
            f"in the worst cell the needle is found {needle_ratio:.0%} as often as by dense attention; class {name} asks for {limits.needle:.0%}"
        )
    return found


def noise_floor(engine: ScoresText, texts: Sequence[Sequence[int]], other_chunk: int) -> float:
    """Mean KL, in nats a token, of the reference with itself when texts come in another order and other chunks."""
    ours = engine.logits(texts)
    order = list(range(len(texts)))[::-1]
    again = engine.logits([texts[index] for index in order], chunk=other_chunk)
    back: list[Tensor] = [again[order.index(index)] for index in range(len(texts))]
    return compare(ours, back, texts).mean_kl.value


def needle_recall(
    engine: ScoresText, needles: Sequence[Needle], said: Callable[[int, int], None] | None = None
) -> dict[tuple[int, float], float]:
    """By cell (length, depth): the share of needles whose every answer token is the most likely one, teacher-forced.

    `said` is told how many of all are done.
    """
    hits: dict[tuple[int, float], list[bool]] = {}
    for number, needle in enumerate(needles):
        text = [*needle.prompt, *needle.answer]
        rows = engine.logits([text])[0][len(needle.prompt) - 1 : -1]
        right = rows.argmax(-1) == torch.tensor(list(needle.answer))
        hits.setdefault((needle.length, needle.depth), []).append(bool(right.all()))
        if said is not None:
            said(number + 1, len(needles))
    return {cell: sum(found) / len(found) for cell, found in hits.items()}


def worst_cell(
    ours: Mapping[tuple[int, float], float], theirs: Mapping[tuple[int, float], float]
) -> tuple[tuple[int, float], float]:
    """The cell where `theirs` is furthest behind `ours`, and the ratio there; cells that the reference fails count as 1."""
    ratios = {cell: (theirs[cell] / value if value else 1.0) for cell, value in ours.items()}
    cell = min(ratios, key=lambda key: ratios[key])
    return cell, ratios[cell]


def _wilson(share: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson, JASA 22, 1927)."""
    if not total:
        return 0.0, 1.0
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - half) / scale, min(1.0, (centre + half) / scale)
