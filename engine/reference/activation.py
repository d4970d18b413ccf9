"""SwiGLU by its definition."""

import torch
from torch import Tensor


def swiglu(gate_up: Tensor) -> Tensor:
    """gate / (1 + exp(-gate)) * up in float32: [T, 2F] -> [T, F]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up
