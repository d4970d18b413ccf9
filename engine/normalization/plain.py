# /// swapbench
# kind = "normalization"
# name = "plain"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "RMS normalization written out in tensor operations, in float32."
# ///
"""The default normalization: the formula."""

import torch
from torch import Tensor

from engine.slots.registry import register


@register("normalization", "plain")
class PlainRMSNorm:
    """h * rsqrt(mean(h ** 2) + eps) * weight, computed in float32 and rounded once."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, out: tuple[Tensor, Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, D], weight [D] -> (normalized [T, D], x + residual [T, D]), in `out` where that is given."""
        y, total = (None, None) if out is None else out
        hidden = x if residual is None else torch.add(x, residual, out=total)
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return torch.mul(wide * scale, weight.float(), out=y).to(x.dtype), hidden
