"""Whether an output is right, and the sentence that says why not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.slots.kind import Finding

BEYOND = 6.0
"""Standard deviations by which an output must be nearer to what it was before."""
EXACT = 1e-6
"""The relative error of what is computed in float32."""
MANY, FAR_BEHIND = 16, 9.0
"""Rows from which on their squared deviations say something in the mean, and how large that is when it cannot be errors: these give a half at most."""


@dataclass(frozen=True)
class Heads:
    """What is known of the errors of attention.

    groups: key/value heads. telling: by which share of its size a head must change for a row to be judged by it; errors may be as large as a third of that.
    coarse: whether keys or values may be rounded, each once for all rows that read it.
    """

    groups: int
    telling: float
    coarse: bool


@dataclass(frozen=True)
class Bound:
    """`element`: largest error of an element as a share of its row's magnitude; `frobenius`: of all errors together."""

    element: float
    frobenius: float


EPSILON = {"float32": 5e-6, "float16": 2.0**-10, "bfloat16": 2.0**-8}
"""Added to a multiple of the plain path's error: about one rounding of the output, for float32 a few reorderings of a sum."""

FIXED = {"float32": Bound(1e-4, 2e-5), "float16": Bound(1.2e-2, 1.5e-3), "bfloat16": Bound(1e-1, 1e-2)}
"""Class E where the plain path is not at hand. Computing in the next coarser dtype misses `frobenius` in each, and so does attention in
bfloat16 whose queries, keys and values were rounded to 8 bits (1.2e-2 of normal values; 0.2e-2 to 0.5e-2 without)."""

COARSE = {"Q8": Bound(0.30, 0.06), "Q4": Bound(0.80, 0.18), "S": Bound(0.30, 0.06)}
"""Other classes: what rounding activations to 8 or 4 bits costs. What it does to a model is judged on a model."""


def compare_output(
    name: str,
    got: Tensor,
    expected: Tensor,
    plain: Tensor | None,
    dtype: str,
    quality_class: str = "E",
    row: str = "row",
    times: float = 2.0,
) -> Finding | None:
    """None where `got` is close enough to `expected` (float32), else what is wrong with it.

    Class E with `plain`: every element within `times` the plain path's error + epsilon, where the plain path's error is the
    largest in the element's own row, or the one that nine rows of ten stay under if that is larger; and the Frobenius
    norm likewise. Without `plain`, and for the other classes, a fixed bound. `row` names the leading dimension.
    """
    if got.shape != expected.shape:
        return Finding(f"{name} has shape {list(got.shape)}; expected {list(expected.shape)}.", name)
    if expected.numel() == 0:
        return None
    values = got.float()
    error = (values - expected).abs_()
    total = float(torch.linalg.vector_norm(error))
    if not math.isfinite(total):
        return not_finite(name, values, expected, row)
    norm = float(torch.linalg.vector_norm(expected))
    # Ten times as fast on a CPU as `aminmax` along a dimension.
    magnitude = torch.maximum(expected.amax(-1, keepdim=True), -expected.amin(-1, keepdim=True))
    # Rows that cancel to nearly nothing have errors of their terms' size. The median is deaf to a few loud rows.
    typical = 0.25 * float(magnitude.median())
    if plain is None:
        # A row's magnitude is at least the typical one: what stays under that bound needs no closer look.
        quick = COARSE.get(quality_class) or FIXED[dtype]
        if float(error.max()) <= quick.element * typical and total <= quick.frobenius * norm:
            return None
    magnitude.clamp_(min=typical)
    if quality_class in COARSE:
        bound = COARSE[quality_class]
        allowed = magnitude * bound.element
        frobenius = bound.frobenius
    elif plain is None:
        bound = FIXED[dtype]
        allowed = magnitude * bound.element
        frobenius = bound.frobenius
    else:
        plain_error = (plain.float() - expected).abs_()
        rows = plain_error.amax(-1, keepdim=True)
        usual = float(rows.flatten().kthvalue(max(1, int(0.9 * rows.numel()))).values)
        allowed = times * rows.clamp(min=usual) + EPSILON[dtype] * magnitude
        frobenius = times * float(torch.linalg.vector_norm(plain_error)) / max(norm, 1e-30) + EPSILON[dtype] / 2
    relative = total / max(norm, 1e-30)
    over = error > allowed
    figures = {"relative error": relative, "allowed relative error": frobenius}
    if bool(over.any()):
        return wrong(name, values, expected, over, row, figures)
    if norm > 0 and relative > frobenius:
        worst = (error / magnitude).flatten().argmax()
        at = unravel(int(worst), expected.shape)
        return Finding(
            f"{name} is off by {relative:.2%} overall (allowed: {frobenius:.2%}), though no single element stands out: "
            f"a systematic error, such as a coarser dtype than {dtype}.{diagnosis(values, expected)}",
            name,
            at,
            float(expected[at]),
            float(values[at]),
            figures,
        )
    return None


def farthest(several: Sequence[Tensor], expected: Tensor) -> Tensor:
    """Of each element the one that is farthest from what it should be."""
    worst = several[0]
    for other in several[1:]:
        worst = torch.where((other - expected).abs() > (worst - expected).abs(), other, worst)
    return worst


def wrong(name: str, values: Tensor, expected: Tensor, over: Tensor, row: str, figures: dict[str, float]) -> Finding:
    """The finding for elements out of bounds: the first, how many, and what they look like."""
    first = unravel(int(over.flatten().to(torch.uint8).argmax()), expected.shape)
    share = float(over.float().mean())
    bad_rows = over.flatten(1).any(1) if over.dim() > 1 else over
    rows = int(bad_rows.sum())
    return Finding(
        f"{name} is wrong from {row} {first[0]} on: element {list(first)} is {float(values[first]):.6g}, expected "
        f"{float(expected[first]):.6g}; {share:.1%} of the elements are out of bounds, in {rows} of {len(bad_rows)} "
        f"{row}s.{diagnosis(values, expected)}",
        name,
        first,
        float(expected[first]),
        float(values[first]),
        figures,
    )


def not_finite(name: str, values: Tensor, expected: Tensor, row: str) -> Finding:
    """The finding for NaN or infinity."""
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        bad = ~torch.isfinite(expected)
    first = unravel(int(bad.flatten().to(torch.uint8).argmax()), expected.shape)
    what = "NaN" if math.isnan(float(values[first])) else "infinity"
    return Finding(
        f"{name} holds {what} at {list(first)} ({row} {first[0]}), and {int(bad.sum())} such elements in all; expected "
        f"{float(expected[first]):.6g}.",
        name,
        first,
        float(expected[first]),
        float(values[first]),
    )


def diagnosis(values: Tensor, expected: Tensor) -> str:
    """A sentence about the likely cause where the output has a telling form, else nothing."""
    if not bool(values.any()):
        return " The output is zero everywhere."
    spread, wanted = float(values.std(correction=0)), float(expected.std(correction=0))
    if wanted > 0 and spread < 1e-3 * wanted:
        return " The output is nearly constant."
    energy = float((values * values).sum())
    factor = float((values * expected).sum()) / max(float((expected * expected).sum()), 1e-30)
    residual = float(torch.linalg.vector_norm(values - factor * expected)) / max(math.sqrt(energy), 1e-30)
    if residual < 0.01 and abs(factor - 1) > 0.005:
        return f" It is {factor:.4g} times what is expected everywhere: a scale is wrong or missing."
    return ""


def stale(
    name: str, got: Tensor, expected: Tensor, before: Tensor, scale: Tensor, what: str, heads: Heads | None = None
) -> Finding | None:
    """What is wrong where an output, or a row of it, is what it was `before` the call's rewrites; None where it is not, or where its errors are
    too large to tell.

    scale: what errors are expected to be in proportion to, in a shape that broadcasts; it weighs the elements. What is weighed is how far
    the output lies from the middle, towards `expected`; its variance is taken from the errors that were seen, each to the
    nearer of the two (the sandwich of White 1980), so that it holds whatever their sizes, as long as they are independent. An honest output
    then falls `BEYOND` deviations below zero in about one of 10^9 calls, whether or not the rewrites are large enough to be seen.

    heads: given where the elements are [rows, heads, channels], whose errors are not independent: one weight that is rounded moves all channels
    of a head towards one key's values, as the rewrite of another key may do, and one key's values that are rounded move all rows. The
    variance allows for as much as errors have in common (clusters, as of Liang and Zeger 1986). Of a row it is asked besides that it be
    three times as near to what it was, in heads that changed enough; and of many rows, whether more lie on the wrong side than errors put there.
    """
    values = got.float().flatten(1)
    after, earlier = expected.flatten(1), before.flatten(1)
    change = after - earlier
    inverse = scale.expand_as(expected).flatten(1).square().clamp_(min=1e-30).reciprocal_()
    weights = change * inverse
    to_after, to_earlier = values - after, values - earlier
    towards = (weights * (to_after + to_earlier)).sum(1) / 2
    nearer = to_after.square().sum(1) <= to_earlier.square().sum(1)
    errors = weights * torch.where(nearer[:, None], to_after, to_earlier)
    variance = errors.square().sum(1)
    everywhere = 1.0
    if heads is not None:
        by_head = errors.view(expected.shape).sum(-1)
        alone = variance.sum().clamp(min=1e-30)
        variance *= float((by_head.square().sum() / alone).clamp(min=1))
        if heads.coarse:
            by_group = by_head.view(len(by_head), heads.groups, -1).sum((0, 2))
            everywhere = float((by_group.square().sum() / variance.sum().clamp(min=1e-30)).clamp(min=1))
    # What is computed in float32 has errors as well.
    variance += EXACT**2 * (weights * change).sum(1)
    over = towards < -BEYOND * variance.sqrt()
    if heads is not None:
        far, near, moved = (part.square().mul_(inverse).view(expected.shape) for part in (to_after, to_earlier, change))
        over &= unmoved(far, near, moved, heads.telling)
        over |= many_behind(towards, variance)
    if float(towards.sum()) < -BEYOND * math.sqrt(everywhere * float(variance.sum())):
        over = towards < 0
    if not bool(over.any()):
        return None
    nearness = (-weights * to_after).masked_fill_(~over[:, None], -math.inf)
    at = unravel(int(nearness.flatten().argmax()), expected.shape)
    return Finding(
        f"{name} is what it was before: at {list(at)} it is {float(got[at]):.6g}, expected {float(expected[at]):.6g}. In each call {what} is "
        "another; nothing that was derived from it in one call may serve the next.",
        name,
        at,
        float(expected[at]),
        float(got[at]),
    )


def unmoved(to_after: Tensor, to_earlier: Tensor, change: Tensor, telling: float) -> Tensor:
    """bool[rows]: whether the heads of a row that changed by `telling` of their size are three times as far from what they should be as from what they were.

    All are squares of [rows, heads, channels], in proportion to the head's size.
    """
    moved = change.mean(-1)
    heads = (moved > 0) & (moved >= telling**2)
    far, near = ((part.sum(-1) * heads).sum(1) for part in (to_after, to_earlier))
    return heads.any(1) & (9 * near < far)


def many_behind(towards: Tensor, variance: Tensor) -> Tensor:
    """bool[rows]: those nearer to what they were, where there are so many that errors do not explain them, though no single one tells.

    Of rows whose errors outweigh the change half lie there, by one deviation in the mean of squares or less.
    """
    asked = variance > 0
    count = int(asked.sum())
    behind = towards.clamp(max=0).square() / variance.clamp(min=1e-30)
    if count < MANY or float(behind[asked].mean()) <= FAR_BEHIND:
        return torch.zeros_like(asked)
    return asked & (towards < 0)


def unravel(flat: int, shape: torch.Size) -> tuple[int, ...]:
    """The index of element `flat` in row-major order."""
    index = []
    for size in reversed(shape):
        index.append(flat % size)
        flat //= size
    return tuple(reversed(index))


def same_bits(name: str, got: Tensor, expected: Tensor, sentence: str) -> Finding | None:
    """None where both hold the same values, NaN in `expected` standing for anything; else `sentence` and the place."""
    if torch.equal(got, expected):
        return None
    differs = (got != expected).logical_and_(expected == expected)  # NaN is the one value that differs from itself
    if not bool(differs.any()):
        return None
    first = unravel(int(differs.flatten().to(torch.uint8).argmax()), expected.shape)
    return Finding(
        f"{sentence} First at {list(first)}: {float(got[first]):.6g}, expected {float(expected[first]):.6g}; "
        f"{int(differs.sum())} elements in all.",
        name,
        first,
        float(expected[first]),
        float(got[first]),
    )


def differing_rows(a: Tensor, b: Tensor, dtype: str) -> Tensor:
    """bool[rows]: where two outputs that should be equal differ by more than reordered sums could explain."""
    difference = (a.float() - b.float()).abs().flatten(1).amax(1)
    magnitude = torch.maximum(a.float().abs().flatten(1).amax(1), b.float().abs().flatten(1).amax(1))
    # NaN compares false with everything, and must count as a difference.
    return ~(difference <= 4 * EPSILON[dtype] * magnitude.clamp(min=1e-3))
