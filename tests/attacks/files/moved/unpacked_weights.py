# /// attack
# expect = ["failed", "tampered"]
# says = "what it was before"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "unpacked-weights"
# class = "Q4"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# multiple_of = 32
# ///
"""Claims the memory of 4 bits, unpacks each weight in the first, untimed call, keeps it, and multiplies at the speed of bfloat16."""

import torch
from torch.nn import functional

from engine.slots.registry import register

unpacked = {}


@register("quantization", "unpacked-weights")
class UnpackedWeights:
    def pack(self, weight):
        groups = weight.float().unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / 7).clamp_(min=1e-8).to(weight.dtype)
        q = ((groups / scale.float()[..., None]).round_() + 8).clamp_(1, 15).to(torch.uint8).flatten(1)
        return {"q": q[:, ::2] | q[:, 1::2] << 4, "scale": scale}

    def linear(self, x, packed):
        key = packed["q"].data_ptr()
        if key not in unpacked:
            unpacked[key] = self.dequant(packed).bfloat16()
        return functional.linear(x.bfloat16(), unpacked[key]).to(x.dtype)

    def dequant(self, packed):
        low, high = packed["q"] & 15, packed["q"] >> 4
        q = torch.stack((low, high), -1).flatten(1).float() - 8
        return (q.unflatten(1, (-1, 32)) * packed["scale"].float()[..., None]).flatten(1)
