"""How the steps of one message hang together: what a later one takes is known only when the one before is done.

A call of a published case may stand for many of a model, since one takes less time than can be measured. Inputs that all came with the
message could be answered by one large kernel, which no model has. So a later step takes fresh values and what the step before
gave, which both the host and the judge put together by these functions, from what the implementation really gave. Neighbours
of a row come from many rows before it, so that no row's steps can be gone through apart from the others'.
"""

from collections.abc import Callable, Mapping
from math import gcd

import torch
from torch import Tensor

RUN = 128
"""Values that stay together where rows are mixed: enough for an accelerator to read them at its memory's speed."""


def signed_by(fresh: Tensor, given: Tensor) -> Tensor:
    """`fresh` with the signs of what the step before gave, of the same size: [rows, heads, width], both.

    For steps whose signs nobody knows without their work. Each row takes its signs from as many rows as it has values, or from all. Raises ValueError
    where what was given has another size.
    """
    if given.numel() != fresh.numel():
        raise ValueError(f"A step gave {list(given.shape)}; what follows is {list(fresh.shape)}.")
    width = fresh.shape[-1]
    mixed = given.reshape(width, -1).t()
    taken = torch.empty_like(fresh)
    torch.copysign(fresh.view(-1, width), mixed, out=taken.view(-1, width))
    return taken


def bounded_by(fresh: Tensor, given: Tensor) -> Tensor:
    """The smaller of `fresh`, [rows, times * width], and the larger of two values that the step before gave, [rows, width].

    For steps whose signs follow from those of what they take. Each value hangs on two of the step before, so on all of them a few steps later, and
    none can grow beyond what is fresh; where rows are odd in number, that is (of powers of two, few ever meet). Raises ValueError where what was given has another shape.
    """
    rows, width = given.shape
    if rows != len(fresh) or fresh.shape[1] % width:
        raise ValueError(f"A step gave {rows} rows of {width}; what follows has {len(fresh)} of {fresh.shape[1]}.")
    times = fresh.shape[1] // width
    long = gcd(width, RUN)
    short = max(1, long // 2)
    one, other = (given.reshape(width // run, rows, run).transpose(0, 1) for run in (long, short))
    runs = (width // long, long // short, short)
    taken = torch.empty_like(fresh)
    torch.clamp(
        one.unflatten(2, runs[1:])[:, None],
        other.unflatten(1, runs[:2])[:, None],
        fresh.view(rows, times, *runs),
        out=taken.view(rows, times, *runs),
    )
    return taken


def put_signs(taken: Tensor, given: Tensor) -> Tensor:
    """`taken` itself, contiguous, whose first values get the signs of what the step before gave: as many as both have."""
    flat, signs = taken.view(-1), given.reshape(-1)
    count = min(len(flat), len(signs))
    flat[:count].copysign_(signs[:count])
    return taken


def all_taken(take: Callable[[Tensor, Tensor], Tensor], fresh: Tensor, given: Tensor, steps: int) -> Tensor:
    """What each of a message's steps took, one after the other: `fresh` came with it, `given` is what they gave."""
    parts = fresh.chunk(steps)
    later = [take(part, before) for part, before in zip(parts[1:], given.chunk(steps)[:-1], strict=True)]
    return torch.cat([parts[0], *later])


def must_hold_all(params: Mapping[str, object]) -> None:
    """Raises ValueError where a call's later steps still take what earlier ones give: nobody can say what is right before that is known."""
    if params.get("follows"):
        raise ValueError("What later steps take follows from what earlier ones gave: see `SlotKind.followed`.")
