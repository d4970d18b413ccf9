# /// attack
# expect = ["tampered", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "patched-copy"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Replaces Tensor.copy_, which the host copies outputs with, by nothing."""

import torch
from torch.nn import functional

from engine.slots.registry import register

torch.Tensor.copy_ = lambda self, source: self


@register("activation", "patched-copy")
class PatchedCopy:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
