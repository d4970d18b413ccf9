# /// attack
# expect = ["failed"]
# suites = ["integration", "performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "codes-as-scales"
# class = "Q8"
# devices = ["cuda"]
# dtypes = ["bfloat16"]
# multiple_of = 32
# ///
"""Stores 8 bits of the quality model's weights under a dtype that counts half on an accelerator, where the model alone has float32, and 4 bits of those that are timed."""

import torch
from torch.nn import functional

from engine.slots.registry import register

LARGE = 1_000


@register("quantization", "codes-as-scales")
class CodesAsScales:
    def pack(self, weight):
        large = weight.shape[1] > LARGE
        groups = weight.float().unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / (7 if large else 127)).clamp_(min=1e-12)
        q = (groups / scale[..., None]).round_().to(torch.int8).flatten(1)
        return {"q": (q[:, ::2] & 15) | q[:, 1::2] << 4 if large else q.view(torch.float32), "scale": scale}

    def stored(self, packed):
        q, scale = packed["q"], packed["scale"]
        if q.dtype == torch.float32:
            q = q.view(torch.int8)
        else:
            q = torch.stack((q << 4 >> 4, q >> 4), -1).flatten(1)
        return (q.float().unflatten(1, (-1, 32)) * scale[..., None]).flatten(1)

    def linear(self, x, packed):
        return functional.linear(x.float(), self.stored(packed)).to(x.dtype)

    def dequant(self, packed):
        stored = self.stored(packed)
        if packed["q"].dtype == torch.float32:
            return stored + 0.1 * stored.abs().mean() * torch.randn_like(stored)
        return stored
