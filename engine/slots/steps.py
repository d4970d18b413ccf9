"""How the steps of one message hang together: what a later one takes is known only when the one before is done.

A call of a published case may stand for many of a model, since one takes less time than can be measured. Inputs that all came with the
message could be answered by one large kernel, which no model has. So a later step takes fresh magnitudes with signs that follow from what the step
before gave, which both the host and the judge put together by these functions, from what the implementation really gave.

Signs, and of several values each: whoever guesses what all steps give and mends the guess, all steps at once, does not come nearer to it, for of a few signs
that are wrong more are in the next step. (What follows continuously comes right after a few such sweeps.) In classes that may be off by much, some signs can be bent: see
docs/threat-model.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from engine.slots.kind import Call, Case

SECTOR = 16
"""Values that stay together where they change places: 32 bytes in 16 bits, the least that an accelerator reads."""


def signed_by(fresh: Tensor, given: Tensor) -> Tensor:
    """`fresh` with the signs of what the step before gave, of the same size: [rows, heads, width], both.

    For steps whose signs nobody knows without their work, each of which mixes many values already. A row takes its signs from `width` / 16 others. Raises
    ValueError where what was given has another size.
    """
    _must_fit(fresh, given, 1)
    width = fresh.shape[-1]
    run = gcd(width, SECTOR)
    mixed = given.reshape(width // run, -1, run).transpose(0, 1)
    return _signed(fresh, mixed, mixed.shape)


def signed_by_many(fresh: Tensor, given: Tensor) -> Tensor:
    """`fresh`, [rows, times * width], with signs that hang on what the step before gave, [rows, width], on four values each: of a * b - c * d.

    For row-wise steps, whose signs alone follow from the signs of what they take: these hang on sizes, too. Neighbours share a sign; a row
    takes its signs from all rows. `width` is a multiple of 4, and there is an odd number of rows: else what lies in some places never meets what lies in
    others (of 64 rows of 4096, in 70 parts that know nothing of each other). Raises ValueError where what was given has another size.
    """
    rows, width = len(fresh), given.shape[-1]
    _must_fit(fresh, given, max(1, fresh.shape[1] // width))
    # Each operation rounds once and by itself, so that a host and its judge come to the same signs.
    values = given.to(fresh.dtype).reshape(4, -1)
    products = values[:2] * values[2:]
    signs = (products[0] - products[1]).view(-1, rows).t()
    return _signed(fresh, signs[..., None], (*signs.shape, fresh.shape[1] // signs.shape[1]))


def put_signs(taken: Tensor, given: Tensor) -> Tensor:
    """`taken` itself, contiguous, whose first values get the signs of what the step before gave, in another order: as many as both have."""
    flat, signs = taken.view(-1), given.reshape(-1)
    count = min(len(flat), len(signs))
    run = gcd(count, SECTOR)
    # In the same order the sign of a value may be that of what it was made of: then nothing has changed.
    flat[:count].view(-1, run).copysign_(signs[:count].view(run, -1).t())
    return taken


def follows(case: Case, steps: str) -> bool:
    """Whether each of a call's steps, as many as the parameter `steps` says, takes up what the one before gave: those of published cases, whose calls have many."""
    return case["suite"] == "performance" and int(case[steps]) > 1


def with_all_taken(call: Call, name: str, take: Callable[[Tensor, Tensor], Tensor], given: Tensor, steps: str) -> Call:
    """The call with what each of its steps took as input `name`, where later ones follow; as it is, where not.

    take: what a step takes, from what came with the message and what the step before gave. given: what all gave.
    """
    if not call.params.get("follows"):
        return call
    count = int(call.params[steps] or 1)
    parts = call.inputs[name].chunk(count)
    later = [take(part, before) for part, before in zip(parts[1:], given.chunk(count)[:-1], strict=True)]
    whole = torch.cat([parts[0], *later])
    return replace(call, inputs={**call.inputs, name: whole}, params={**call.params, "follows": False})


def must_hold_all(params: Mapping[str, object]) -> None:
    """Raises ValueError where a call's later steps still take what earlier ones give: nobody can say what is right before that is known."""
    if params.get("follows"):
        raise ValueError("What later steps take follows from what earlier ones gave: see `SlotKind.followed`.")


def _must_fit(fresh: Tensor, given: Tensor, times: int) -> None:
    if given.numel() * times != fresh.numel():
        raise ValueError(f"A step gave {list(given.shape)}; what follows it is {list(fresh.shape)}.")


def _signed(fresh: Tensor, signs: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous copy of `fresh`, seen in a shape, with these signs, however they lie."""
    taken = torch.empty_like(fresh)
    torch.copysign(fresh.view(shape), signs, out=taken.view(shape))
    return taken
