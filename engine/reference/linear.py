"""A linear layer by its definition."""

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [T, in] times the transposed weight [out, in], computed in `dtype`: [T, out]."""
    return x.to(dtype) @ weight.to(dtype).T
