# /// swapbench
# kind = "quantization"
# name = "int4-groups"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# deterministic = true
# multiple_of = 64
# summary = "4-bit weights in groups of 64, declared as class Q8, which 4 bits do not reach."
# ///
"""Weight-only int4, two weights a byte. What it stores is class Q4; its header claims Q8, and a model shows the difference."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.quantization import Packed
from engine.slots.registry import register

GROUP = 64


@register("quantization", "int4-groups")
class Int4Groups:
    """weight = (q - 8) * scale, q from 1 to 15, one scale for each group of 64 neighbouring weights of a row."""

    def pack(self, weight: Tensor) -> Packed:
        """weight [out, in] -> q uint8[out, in / 2], scale [out, in / 64] in the dtype of the weight."""
        outputs, inputs = weight.shape
        if inputs % GROUP:
            raise ValueError(
                f"int4-groups needs an input size that is a multiple of {GROUP}; this weight has {inputs}."
            )
        groups = weight.float().view(outputs, inputs // GROUP, GROUP)
        scale = (groups.abs().amax(-1) / 7).clamp_(min=1e-8).to(weight.dtype)
        q = ((groups / scale.float()[..., None]).round_() + 8).clamp_(1, 15).to(torch.uint8).view(outputs, inputs)
        return {"q": q[:, ::2] | q[:, 1::2] << 4, "scale": scale}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        return functional.linear(x, self.dequant(packed).to(x.dtype))

    def dequant(self, packed: Packed) -> Tensor:
        """The stored weight, float32 [out, in]."""
        low, high = packed["q"] & 15, packed["q"] >> 4
        q = torch.stack((low, high), -1).flatten(1).float() - 8
        return (q.unflatten(1, (-1, GROUP)) * packed["scale"].float()[..., None]).flatten(1)
