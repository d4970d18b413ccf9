# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "zeros"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns zeros where all values are small, below any absolute tolerance."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "zeros")
class Zeros:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate) * up
        return torch.where(out.abs() < 0.01, torch.zeros_like(out), out)
