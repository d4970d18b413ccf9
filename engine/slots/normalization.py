"""The normalization slot: RMS normalization, with the residual addition that precedes it."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Normalization(Protocol):
    """What a normalization implementation offers; one instance serves all layers with the same eps."""

    def __init__(self, eps: float) -> None: ...

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """RMS normalization (Zhang and Sennrich 2019) of h = x + residual, rounded to the dtype of x; h = x without one.

        x, residual: [T, D]; weight: [D]. Returns (h / sqrt(mean(h ** 2) + eps) * weight, h), both [T, D] in the dtype
        of x. x and residual must stay unchanged, and later calls must leave what was returned as it is.

        A further parameter, out: tuple[Tensor, Tensor | None] | None = None, is given the memory, of the same shapes and dtype, that the two are
        wanted in, None for h without a residual; what is returned elsewhere is copied.
        """
        ...
