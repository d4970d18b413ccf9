"""Where a call's outputs lie: a host has memory for them that the judge reads, and a module may write there itself.

Row-wise modules and operators are offered it by the keyword `out`, since one that looks for it could leave out a copy that others pay for. The
engine itself has no such place and offers none; so it is judged, too, what they give without (`both_ways`).
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from engine.slots.kind import Call, Finding
from engine.slots.registry import SlotError

APART = "apart"
"""The parameter of a call in which nothing is offered."""


def both_ways(call: Call) -> list[Call]:
    """The call with its places offered, and without."""
    return [call, replace(call, params=call.params | {APART: True})]


def told_of(call: Call, finding: Finding) -> Finding:
    """What was found of a call, which says so where nothing was offered in it."""
    if not call.params.get(APART):
        return finding
    return replace(finding, sentence=f"Called without `out`, as the engine calls it: {finding.sentence}")


def takes_out(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter `out`."""
    try:
        return "out" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some built-in functions nobody knows
        return False


Earlier = tuple[int, int, Tensor]
"""A result of an earlier step, which is still alive: where its memory begins and ends, and itself."""


def put(what: str, value: Tensor, place: Tensor, earlier: list[Earlier] | None = None) -> Tensor:
    """A result in its place among a call's outputs, where it may lie already.

    what: how sentences call it. earlier: results of earlier steps, to which this one is added. Raises SlotError where it is none, or lies where one of these does.
    """
    if not isinstance(value, Tensor):
        raise SlotError(f"{what} must be a tensor, not {type(value).__name__}.")
    if value.shape != place.shape:
        raise SlotError(f"{what} has shape {list(value.shape)}; expected {list(place.shape)}.")
    if value.dtype != place.dtype:
        raise SlotError(f"{what} has dtype {value.dtype}; expected {place.dtype}.")
    if earlier is not None:
        begin, end = extent(value)
        if any(begin < other_end and other_begin < end for other_begin, other_end, _ in earlier):
            raise SlotError(f"{what} lies where an earlier result does, which must outlive later calls.")
        earlier.append((begin, end, value))
    if value is not place:
        settle(value, place)
    return place


def settle(value: Tensor, place: Tensor) -> None:
    """Copies `value` to its place, unless it lies there as it should."""
    begin, end = extent(value)
    begin_of_place, end_of_place = extent(place)
    if begin >= end_of_place or begin_of_place >= end:
        place.copy_(value)
    elif begin != begin_of_place or steps(value) != steps(place):
        # Parts of it lie there, in another order or elsewhere.
        place.copy_(value.clone())


def extent(tensor: Tensor) -> tuple[int, int]:
    """Where its memory begins, and where it ends."""
    begin = tensor.data_ptr()
    if not tensor.numel():
        return begin, begin
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.element_size()


def steps(tensor: Tensor) -> tuple[int, ...]:
    """The strides that lead from one element to another."""
    return tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
