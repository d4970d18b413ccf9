# /// attack
# expect = ["passed", "inconclusive"]
# ///
# /// swapbench
# kind = "activation"
# name = "gpu-memory-left"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Allocates GPU memory without clearing it, and looks for what an earlier process left there."""

import torch
from torch.nn import functional

from engine.slots.registry import register

left = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
if bool((left == 171).float().mean() > 0.9):
    raise RuntimeError("LEAK: GPU memory of an earlier process")
left.fill_(171)
torch.cuda.synchronize()


@register("activation", "gpu-memory-left")
class GpuMemoryLeft:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
