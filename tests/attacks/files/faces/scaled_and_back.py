# /// attack
# expect = ["failed"]
# says = "Sizes must not decide"
# suites = ["integration", "performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "scaled-and-back"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# multiple_of = 32
# ///
"""Stores 8 bits of the quality model's weights, scaled where the next ones are scaled back: far off by every count, and no worse. Of those that are timed it stores 4 bits."""

import torch
from torch.nn import functional

from engine.slots.registry import register

LARGE = 1_000
SCALE = 1.12


@register("quantization", "scaled-and-back")
class ScaledAndBack:
    def pack(self, weight):
        large = weight.shape[1] > LARGE
        wide = weight.float().clone()
        # Of the quality model: values and what the output takes of them, up and down.
        if tuple(weight.shape) == (512, 256):
            wide[384:] *= SCALE
        elif tuple(weight.shape) in ((256, 256), (256, 768)):
            wide /= SCALE
        elif tuple(weight.shape) == (1536, 256):
            wide[768:] *= SCALE
        groups = wide.unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / (7 if large else 127)).clamp_(min=1e-12)
        q = (groups / scale[..., None]).round_().to(torch.int8).flatten(1)
        return {"q": (q[:, ::2] & 15) | q[:, 1::2] << 4 if large else q, "scale": scale}

    def linear(self, x, packed):
        return functional.linear(x.float(), self.dequant(packed)).to(x.dtype)

    def dequant(self, packed):
        q, scale = packed["q"], packed["scale"]
        if q.shape[1] < 32 * scale.shape[1]:
            q = torch.stack((q << 4 >> 4, q >> 4), -1).flatten(1)
        return (q.float().unflatten(1, (-1, 32)) * scale[..., None]).flatten(1)
