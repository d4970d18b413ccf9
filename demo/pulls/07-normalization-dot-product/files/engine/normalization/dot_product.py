# /// swapbench
# kind = "normalization"
# name = "dot-product"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# summary = "RMSNorm whose sum of squares is a dot product, and which scales in place."
# ///
"""RMSNorm with two passes less: no tensor of squares is written, and the weight is multiplied into what is still in the cache."""

import torch
from torch import Tensor

from engine.slots.registry import register


@register("normalization", "dot-product")
class DotProductRMSNorm:
    """h * rsqrt(h . h / D + eps) * weight, computed in float32 and rounded once."""

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(self, x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """x, residual [T, D], weight [D] -> (normalized [T, D], x + residual [T, D])."""
        hidden = x if residual is None else x + residual
        wide = hidden.float()
        scale = torch.rsqrt(torch.linalg.vecdot(wide, wide) / x.shape[-1] + self.eps)
        return (wide * scale[:, None]).mul_(weight.float()).to(x.dtype), hidden
