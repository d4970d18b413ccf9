"""Where a call's outputs lie: a host has memory for them that the judge reads, and a module may write there itself.

It is offered to every module, by the keyword `out`, since one that looks for it could leave out a copy that others pay for.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from engine.slots.registry import SlotError


def takes_out(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter `out`."""
    try:
        return "out" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of some built-in functions nobody knows
        return False


def put(what: str, value: Tensor, place: Tensor, earlier: Sequence[Tensor] = ()) -> Tensor:
    """A result in its place among a call's outputs, where it may lie already.

    what: how sentences call it. earlier: results of earlier steps, which are still alive. Raises SlotError where it is none, or lies where one of these does.
    """
    if not isinstance(value, Tensor):
        raise SlotError(f"{what} must be a tensor, not {type(value).__name__}.")
    if value.shape != place.shape:
        raise SlotError(f"{what} has shape {list(value.shape)}; expected {list(place.shape)}.")
    if value.dtype != place.dtype:
        raise SlotError(f"{what} has dtype {value.dtype}; expected {place.dtype}.")
    address = value.data_ptr()
    if any(other.data_ptr() == address for other in earlier):
        raise SlotError(f"{what} lies where an earlier result does, which must outlive later calls.")
    if address != place.data_ptr() or value.stride() != place.stride():
        place.copy_(value)
    return place
