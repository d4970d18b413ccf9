# /// attack
# expect = ["failed"]
# says = "hold nothing else"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "noisy-pack"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Packs noise beside each weight, other noise each time: the judge, who keeps a place for each element that a change of the weight changes, would run out of memory."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("quantization", "noisy-pack")
class NoisyPack:
    def pack(self, weight):
        noise = torch.empty((2 * weight.nbytes,), dtype=torch.uint8, device=weight.device).random_(0, 256)
        return {"weight": weight.clone(), "noise": noise}

    def linear(self, x, packed):
        return functional.linear(x, packed["weight"])

    def dequant(self, packed):
        return packed["weight"].float()
