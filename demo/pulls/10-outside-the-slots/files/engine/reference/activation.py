"""SwiGLU by its definition, with bounded inputs."""

import torch
from torch import Tensor

LIMIT = 7.0
"""Gates are cut off above it, and the other half beyond ± it, so that a single channel cannot overflow float16."""


def swiglu(gate_up: Tensor) -> Tensor:
    """gate / (1 + exp(-gate)) * up in float32, both halves bounded: [T, 2F] -> [T, F]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return gate / (1 + torch.exp(-gate)) * up
