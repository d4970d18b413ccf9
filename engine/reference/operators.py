"""The operators that adapters bind, by their definitions, in float32 or better."""

import torch
from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    """exp(x - max) / sum over the last dimension: [T, N] -> [T, N]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    powers = torch.exp(wide - wide.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """q [B, H, Tq, D] over k, v [B, H, Tk, D], the last query aligned with the last key; products in `dtype`."""
    scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2)
    scores = scores.to(torch.promote_types(dtype, torch.float32)) * scale
    queries, keys = scores.shape[-2:]
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(keys - queries + 1)
    return softmax(scores.masked_fill(hidden, float("-inf"))).to(dtype) @ v.to(dtype)
