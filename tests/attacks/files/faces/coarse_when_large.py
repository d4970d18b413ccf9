# /// attack
# expect = ["failed"]
# suites = ["unit", "performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "coarse-when-large"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Stores 8 bits of weights as small as the quality model's, and 4 bits of those that are timed: quality of the one, speed and memory of the other."""

import torch
from torch.nn import functional

from engine.slots.registry import register

LARGE = 1_000_000


@register("quantization", "coarse-when-large")
class CoarseWhenLarge:
    def pack(self, weight):
        size = 32 if weight.numel() >= LARGE and weight.shape[1] % 32 == 0 else weight.shape[1]
        levels = 7 if size == 32 else 127
        groups = weight.float().unflatten(1, (-1, size))
        scale = (groups.abs().amax(-1) / levels).clamp_(min=1e-12)
        q = (groups / scale[..., None]).round_().to(torch.int8).flatten(1)
        if levels == 7:
            q = (q[:, ::2] & 15) | q[:, 1::2] << 4
        return {"q": q, "scale": scale.bfloat16()}

    def linear(self, x, packed):
        return functional.linear(x.bfloat16(), self.dequant(packed).bfloat16()).to(x.dtype)

    def dequant(self, packed):
        q, scale = packed["q"], packed["scale"].float()
        if scale.shape[1] > 1:
            low, high = q << 4 >> 4, q >> 4
            q = torch.stack((low, high), -1).flatten(1)
        return (q.float().unflatten(1, (scale.shape[1], -1)) * scale[..., None]).flatten(1)
