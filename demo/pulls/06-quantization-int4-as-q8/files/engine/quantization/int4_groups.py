# /// swapbench
# kind = "quantization"
# name = "int4-groups"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# deterministic = true
# multiple_of = 16
# summary = "4-bit weights in groups of 16, declared as class Q8, which 4 bits do not reach."
# ///
"""Weight-only int4, two weights a byte. What it stores is class Q4; its header claims Q8, and a model shows the difference."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.quantization import Packed
from engine.slots.registry import register

GROUP = 16


@register("quantization", "int4-groups")
class Int4Groups:
    """weight = low + q * step, q from 0 to 15, with a low and a step for each group of 16 neighbouring weights of a row."""

    def pack(self, weight: Tensor) -> Packed:
        """weight [out, in] -> q uint8[out, in / 2]; low, step bfloat16[out, in / 16]."""
        outputs, inputs = weight.shape
        if inputs % GROUP:
            raise ValueError(
                f"int4-groups needs an input size that is a multiple of {GROUP}; this weight has {inputs}."
            )
        groups = weight.float().view(outputs, inputs // GROUP, GROUP)
        # Rounded first, so that q is chosen for what is stored. A group of equal weights must not divide by zero.
        low = groups.amin(-1).bfloat16()
        step = ((groups.amax(-1) - low.float()) / 15).clamp_(min=1e-8).bfloat16()
        q = (groups - low.float()[..., None]).div_(step.float()[..., None]).round_().clamp_(0, 15)
        q = q.to(torch.uint8).view(outputs, inputs)
        return {"q": q[:, ::2] | q[:, 1::2] << 4, "low": low, "step": step}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        return functional.linear(x, self.dequant(packed).to(x.dtype))

    def dequant(self, packed: Packed) -> Tensor:
        """The stored weight, float32 [out, in]."""
        q = torch.stack((packed["q"] & 15, packed["q"] >> 4), -1).flatten(1).float().unflatten(1, (-1, GROUP))
        return (q * packed["step"].float()[..., None] + packed["low"].float()[..., None]).flatten(1)
