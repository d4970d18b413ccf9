# /// swapbench
# kind = "activation"
# name = "plain"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "SwiGLU in two PyTorch operations."
# ///
"""The default activation: silu, then a product."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "plain")
class PlainSwiGLU:
    """silu(gate) * up."""

    def forward(self, gate_up: Tensor, out: Tensor | None = None) -> Tensor:
        """gate_up [T, 2F] -> [T, F], in `out` where that is given."""
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.mul(functional.silu(gate), up, out=out)
