# /// attack
# expect = ["failed"]
# says = "Sizes must not decide"
# suites = ["integration", "performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "coarse-when-large"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# multiple_of = 32
# ///
"""Stores 8 bits of weights as small as the quality model's, and 4 bits of those that are timed: quality of the one, speed and memory of the other."""

import torch
from torch.nn import functional

from engine.slots.registry import register

LARGE = 1_000


@register("quantization", "coarse-when-large")
class CoarseWhenLarge:
    def pack(self, weight):
        large = weight.shape[1] > LARGE
        groups = weight.float().unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / (7 if large else 127)).clamp_(min=1e-12)
        q = (groups / scale[..., None]).round_().to(torch.int8).flatten(1)
        return {"q": (q[:, ::2] & 15) | q[:, 1::2] << 4 if large else q, "scale": scale}

    def linear(self, x, packed):
        if packed["q"].shape[1] < 32 * packed["scale"].shape[1]:
            return functional.linear(x.bfloat16(), self.dequant(packed).bfloat16()).to(x.dtype)
        return functional.linear(x.float(), self.dequant(packed)).to(x.dtype)

    def dequant(self, packed):
        q, scale = packed["q"], packed["scale"]
        if q.shape[1] < 32 * scale.shape[1]:
            q = torch.stack((q << 4 >> 4, q >> 4), -1).flatten(1)
        return (q.float().unflatten(1, (-1, 32)) * scale[..., None]).flatten(1)
