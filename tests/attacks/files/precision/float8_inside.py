# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "float8-inside"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["bfloat16"]
# ///
"""Rounds bfloat16 inputs to 8 bits and calls it exact."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "float8-inside")
class Float8Inside:
    def forward(self, gate_up):
        gate, up = gate_up.to(torch.float8_e4m3fn).to(gate_up.dtype).chunk(2, dim=-1)
        return functional.silu(gate) * up
