# /// swapbench
# kind = "activation"
# name = "in-place"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# summary = "SwiGLU that multiplies into the buffer that silu has just filled."
# ///
"""SwiGLU with one buffer less: the product overwrites silu's result while it is still in the cache."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "in-place")
class InPlaceSwiGLU:
    """silu(gate) * up. The input stays as it is: only silu's own result is overwritten."""

    def forward(self, gate_up: Tensor, out: Tensor | None = None) -> Tensor:
        """gate_up [T, 2F] -> [T, F], in `out` where that is given."""
        gate, up = gate_up.chunk(2, dim=-1)
        if out is not None:
            return torch.ops.aten.silu.out(gate, out=out).mul_(up)
        return functional.silu(gate).mul_(up)
