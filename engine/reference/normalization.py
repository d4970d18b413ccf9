"""RMS normalization by its definition."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(h / sqrt(mean(h ** 2) + eps) * weight in float32, h in the dtype of x) for h = x + residual; all [T, D]."""
    hidden = x if residual is None else x + residual
    wide = hidden.float()
    return wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + eps) * weight.float(), hidden
