"""How much a swapped module changes what a model says: perplexity, KL, top-1 agreement, needles; and the quality classes.

Everything here is a function of logits. They come from an engine (`engine.generate.Engine`, or whatever has its `logits`),
once with the reference and once with the module; both are given the same tokens, so every comparison is paired.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CONFIDENCE_Z = 1.959964
"""Intervals are two-sided at 95 %."""

BLOCK = 64
"""Consecutive tokens that count as one observation: what a module gets wrong, it gets wrong for stretches of text."""

LEAST_NOISE = 1e-6
"""Mean KL in nats under which float32 rounding cannot be told from none; a noise floor counts as at least this."""


class Scorer(Protocol):
    """What scores texts: an engine."""

    def logits(self, texts: Sequence[Sequence[int]], chunk: int | None = None) -> list[Tensor]:
        """float32 [T, vocabulary] for each text of T tokens; row t scores the token after `text[: t + 1]`.

        `chunk`: at most so many tokens of a text in one step.
        """
        ...


@dataclass(frozen=True)
class Limits:
    """What a quality class allows. `kl` None stands for twice the noise floor, `needle` None for no demand.

    delta_ppl: relative rise of perplexity. kl: mean KL divergence in nats. top1: least share of tokens with the same most
    likely successor. needle: least recall in every cell, as a share of the reference's.
    """

    delta_ppl: float
    kl: float | None
    top1: float
    needle: float | None = None


LIMITS = {
    "E": Limits(0.001, None, 0.999),
    "Q8": Limits(0.012, 0.01, 0.98),
    "Q4": Limits(0.065, 0.08, 0.93),
    "S": Limits(0.01, 0.02, 0.98, needle=0.95),
}
"""The classes, the strictest first; S stands beside the others."""


@dataclass(frozen=True)
class Measure:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Quality:
    """What a module changes.

    delta_ppl: (perplexity with the module) / (perplexity of the reference) - 1. mean_kl: KL(reference || module) in nats a
    token. top1: share of tokens with the same most likely successor. perplexity: of the reference. tokens: how many were
    scored.
    """

    delta_ppl: Measure
    mean_kl: Measure
    top1: Measure
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class TokenScores:
    """For each scored token of a text, float64 [n]: negative log-likelihoods, KL in nats, and 1 where top-1 agrees."""

    reference_nll: Tensor
    nll: Tensor
    kl: Tensor
    agrees: Tensor


def score(reference: Tensor, candidate: Tensor, text: Sequence[int], scored: Tensor | None = None) -> TokenScores:
    """Scores the tokens of a text after its first by two logits [T, vocabulary].

    scored: bool[T], which tokens count (by default all). Raises ValueError where the candidate's logits are not finite.
    """
    if reference.shape != candidate.shape or len(text) != len(reference):
        raise ValueError(
            f"Logits {list(reference.shape)} and {list(candidate.shape)} of a text of {len(text)} tokens do not fit."
        )
    rows = torch.arange(len(text) - 1)
    if scored is not None:
        rows = rows[scored[1:].bool()]
    next_tokens = torch.tensor(list(text), dtype=torch.int64)[rows + 1].to(reference.device)
    rows = rows.to(reference.device)
    chosen = candidate[rows]
    finite = torch.isfinite(chosen).all(-1)
    if not bool(finite.all()):
        at = int(rows[int((~finite).to(torch.uint8).argmax())])
        raise ValueError(f"The logits after {at + 1} tokens are not finite.")
    ours = torch.log_softmax(reference[rows].float(), -1)
    theirs = torch.log_softmax(chosen.float(), -1)
    kl = (ours.exp() * (ours - theirs)).sum(-1, dtype=torch.float64)
    picked = next_tokens[:, None]
    return TokenScores(
        reference_nll=-ours.gather(1, picked)[:, 0].double(),
        nll=-theirs.gather(1, picked)[:, 0].double(),
        kl=kl.clamp_(min=0.0),
        agrees=(ours.argmax(-1) == theirs.argmax(-1)).double(),
    )


def compare(
    reference: Sequence[Tensor],
    candidate: Sequence[Tensor],
    texts: Sequence[Sequence[int]],
    scored: Sequence[Tensor] | None = None,
) -> Quality:
    """The quality of a module from the logits [T, vocabulary] of every text, without it and with it.

    scored: for each text bool[T], which tokens count. Raises ValueError where logits are not finite or no token counts.
    """
    masks: Sequence[Tensor | None] = [None] * len(texts) if scored is None else scored
    parts = [score(*each) for each in zip(reference, candidate, texts, masks, strict=True)]
    return summarize(parts)


def summarize(parts: Sequence[TokenScores]) -> Quality:
    """The quality over all scored tokens, with intervals from blocks of consecutive tokens."""
    tokens = sum(len(part.kl) for part in parts)
    if not tokens:
        raise ValueError("No token was scored.")
    difference = block_interval([part.nll - part.reference_nll for part in parts])
    agreement = block_interval([part.agrees for part in parts])
    # Where nothing disagrees, blocks have no spread; Wilson's interval still knows how many tokens were looked at.
    low, high = wilson(agreement.value, tokens)
    reference_nll = float(torch.cat([part.reference_nll for part in parts]).mean())
    return Quality(
        delta_ppl=Measure(
            *(math.expm1(min(each, 700.0)) for each in (difference.value, difference.low, difference.high))
        ),
        mean_kl=block_interval([part.kl for part in parts]),
        top1=Measure(agreement.value, max(0.0, min(agreement.low, low)), min(1.0, max(agreement.high, high))),
        perplexity=math.exp(min(reference_nll, 700.0)),
        tokens=tokens,
    )


def block_interval(series: Sequence[Tensor], block: int = BLOCK) -> Measure:
    """The mean of all values of several series, with a Student interval over the means of blocks of consecutive values.

    A rest shorter than half a block joins the block before it. With fewer than two blocks the interval is the whole line.
    """
    means: list[float] = []
    sizes: list[int] = []
    for values in series:
        count = max(1, round(len(values) / block))
        for piece in values.double().chunk(count):
            if len(piece):
                means.append(float(piece.mean()))
                sizes.append(len(piece))
    total = sum(sizes)
    mean = sum(m * s for m, s in zip(means, sizes, strict=True)) / total
    blocks = len(means)
    if blocks < 2:
        return Measure(mean, -math.inf, math.inf)
    # The variance of a mean of blocks weighted by their sizes.
    spread = sum((s * (m - mean)) ** 2 for m, s in zip(means, sizes, strict=True)) / total**2
    error = math.sqrt(spread * blocks / (blocks - 1)) * student_quantile(blocks - 1)
    return Measure(mean, mean - error, mean + error)


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal quantile (Abramowitz and Stegun 26.7.5)."""
    z = CONFIDENCE_Z
    if freedom == 1:
        return 12.7062
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (power + 1.0) for power, term in enumerate(terms))


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` independent trials, 95 %."""
    z2 = CONFIDENCE_Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = CONFIDENCE_Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return middle - reach, middle + reach


def noise_floor(
    scorer: Scorer, texts: Sequence[Sequence[int]], once: Sequence[Tensor] | None = None, other_chunk: int = 96
) -> float:
    """Mean KL in nats of a scorer from itself with the batch in another order and other steps.

    `once`: its logits of the texts, where they are known. What differs then is only the order of sums, which no exact module can be
    asked to keep.
    """
    if once is None:
        once = scorer.logits(texts)
    again = scorer.logits(list(reversed(texts)), chunk=other_chunk)[::-1]
    return compare(once, again, texts).mean_kl.value


# -- needles ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needle:
    """A document of `length` tokens with something hidden at `depth` (0 beginning, 1 end), and how it must go on."""

    length: int
    depth: float
    prompt: Sequence[int]
    answer: Sequence[int]


Grid = dict[tuple[int, float], float]
"""Recall from 0 to 1 by (length, depth)."""


def needle_recall(
    scorer: Scorer, needles: Sequence[Needle], progress: Callable[[int, int], None] | None = None
) -> Grid:
    """The share of needles of each cell whose every answer token is the most likely one after those before it.

    progress: called with (documents done, documents in all).
    """
    hits: dict[tuple[int, float], list[bool]] = {}
    for done, needle in enumerate(needles):
        if progress is not None:
            progress(done, len(needles))
        text = [*needle.prompt, *needle.answer]
        logits = scorer.logits([text])[0]
        first = len(needle.prompt)
        said = logits[first - 1 : len(text) - 1].argmax(-1).tolist()
        hits.setdefault((needle.length, needle.depth), []).append(said == list(needle.answer))
    if progress is not None:
        progress(len(needles), len(needles))
    return {cell: sum(found) / len(found) for cell, found in hits.items()}


def worst_cell(reference: Grid, candidate: Grid) -> tuple[tuple[int, float], float]:
    """The cell in which the candidate recalls the least of what the reference does, and that share.

    Cells in which the reference recalls nothing say nothing; where it does in none, the share is 1.
    """
    ratios = {cell: candidate[cell] / recall for cell, recall in reference.items() if recall > 0}
    if not ratios:
        return next(iter(reference)), 1.0
    cell = min(ratios, key=lambda each: ratios[each])
    return cell, ratios[cell]


# -- classes ------------------------------------------------------------------------------------------------------------


def kl_limit(quality_class: str, noise: float) -> float:
    """The largest mean KL in nats that a class allows, given the noise floor."""
    limit = LIMITS[quality_class].kl
    return 2 * max(noise, LEAST_NOISE) if limit is None else limit


def shortfalls(quality_class: str, quality: Quality, noise: float, needle: float | None = None) -> list[str]:
    """What is missing from a class, as clauses of a sentence; empty where it is met.

    The estimates decide; a clause says where the interval reaches back over the limit, so that more text could decide
    otherwise. `needle`: the least recall of a cell as a share of the reference's, None where it was not measured.
    """
    limits = LIMITS[quality_class]
    found = []

    def close(reaches: bool) -> str:
        return ", though the interval reaches over the limit" if reaches else ""

    ppl, kl, top1 = quality.delta_ppl, quality.mean_kl, quality.top1
    if not ppl.value <= limits.delta_ppl:
        found.append(
            f"perplexity rises by {ppl.value:.3%} ({ppl.low:.3%} to {ppl.high:.3%}); allowed is {limits.delta_ppl:.1%}"
            + close(ppl.low <= limits.delta_ppl)
        )
    most = kl_limit(quality_class, noise)
    if not kl.value <= most:
        found.append(
            f"mean KL is {kl.value:.3g} nats ({max(kl.low, 0.0):.3g} to {kl.high:.3g}); allowed is {most:.3g}"
            + close(kl.low <= most)
        )
    if not top1.value >= limits.top1:
        found.append(
            f"top-1 agreement is {top1.value:.2%} ({top1.low:.2%} to {top1.high:.2%}); needed is {limits.top1:.1%}"
            + close(top1.high >= limits.top1)
        )
    if limits.needle is not None and needle is not None and needle < limits.needle:
        found.append(
            f"in its worst cell needle recall is {needle:.0%} of the reference's; needed is {limits.needle:.0%}"
        )
    return found


def classes_met(quality: Quality, noise: float, needle: float | None = None) -> tuple[str, ...]:
    """The classes whose limits are kept, the strictest first. S needs a measured needle recall."""
    return tuple(
        name
        for name, limits in LIMITS.items()
        if not shortfalls(name, quality, noise, needle) and (limits.needle is None or needle is not None)
    )


def measure(
    reference: Scorer,
    candidate: Scorer,
    texts: Sequence[Sequence[int]],
    scored: Sequence[Tensor] | None = None,
    chunk: int | None = None,
) -> Quality:
    """The quality of one engine against another on the same texts, text by text so that few logits are held at once."""
    masks: Sequence[Tensor | None] = [None] * len(texts) if scored is None else scored
    return summarize(
        [
            score(reference.logits([text], chunk)[0], candidate.logits([text], chunk)[0], text, mask)
            for text, mask in zip(texts, masks, strict=True)
        ]
    )
