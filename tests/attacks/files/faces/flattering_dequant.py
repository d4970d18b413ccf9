# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# ///
# /// swapbench
# kind = "quantization"
# name = "flattering-dequant"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Shows an 8-bit weight in dequant and multiplies with one of 3 bits."""

import torch
from torch.nn import functional

from engine.slots.registry import register


def rounded(weight, levels):
    scale = (weight.float().abs().amax(1, keepdim=True) / levels).clamp_(min=1e-12)
    return (weight.float() / scale).round_().to(torch.int8), scale


@register("quantization", "flattering-dequant")
class FlatteringDequant:
    def pack(self, weight):
        fine, fine_scale = rounded(weight, 127)
        coarse, coarse_scale = rounded(weight, 3)
        return {"fine": fine, "fine_scale": fine_scale, "coarse": coarse, "coarse_scale": coarse_scale}

    def linear(self, x, packed):
        return functional.linear(x.float(), packed["coarse"].float() * packed["coarse_scale"]).to(x.dtype)

    def dequant(self, packed):
        return packed["fine"].float() * packed["fine_scale"]
