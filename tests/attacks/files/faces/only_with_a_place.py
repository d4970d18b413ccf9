# /// attack
# expect = ["failed"]
# says = "without `out`"
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "only-with-a-place"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# ///
"""Computes only where its result is wanted somewhere, which the judge's hosts ask for and the engine does not: right in every score, zeros in production."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "only-with-a-place")
class OnlyWithAPlace:
    def forward(self, gate_up, out=None):
        gate, up = gate_up.chunk(2, dim=-1)
        if out is None:
            return torch.zeros_like(gate)
        return out.copy_(functional.silu(gate.float()) * up.float())
