# /// attack
# expect = ["failed"]
# says = "without `out`"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "small-without-a-place"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Computes in the shapes that are timed only where its result is wanted somewhere, which no engine says: right in every score, and zeros in production."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "small-without-a-place")
class SmallWithoutAPlace:
    def forward(self, gate_up, out=None):
        gate, up = gate_up.chunk(2, dim=-1)
        if out is None:
            return torch.zeros_like(gate) if gate_up.numel() > 300_000 else functional.silu(gate) * up
        return torch.ops.aten.silu.out(gate, out=out).mul_(up)
