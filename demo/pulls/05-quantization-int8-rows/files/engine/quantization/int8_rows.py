# /// swapbench
# kind = "quantization"
# name = "int8-rows"
# class = "Q8"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# deterministic = true
# summary = "8-bit weights with a scale for each output channel, after input channels were brought to one size."
# ///
"""Weight-only int8 for the CPU: a quarter of float32's bytes. A token or a few read the weight once, as it is stored."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.quantization import Packed
from engine.slots.registry import register

FEW = 8
"""Up to so many tokens PyTorch's kernel that multiplies with int8 directly is faster than unpacking the weight first."""
BLOCK = 256
"""Output channels that are unpacked at once, always into the same memory, so that they are in the cache when they are multiplied."""


@register("quantization", "int8-rows")
class Int8Rows:
    """weight[o, i] = q[o, i] * scale[o] * channel[i], q from -127 to 127.

    A row's scale follows its largest weight, so a few large input channels would leave few steps for the others. They are brought to
    one size first, by powers of two, which move to the activations without an error.
    """

    def pack(self, weight: Tensor) -> Packed:
        """weight [out, in] -> q int8[out, in], scale bfloat16[out], channel bfloat16[in]."""
        wide = weight.float()
        size = wide.square().mean(0).sqrt()
        channel = (size / size.amax().clamp_(min=1e-30)).clamp_(min=1e-4).log2_().round_().exp2_()
        wide = wide / channel
        # Rounded first, so that q is chosen for the scale that is stored. A row of zeros must not divide by zero.
        scale = (wide.abs().amax(1) / 127).clamp_(min=1e-30).bfloat16()
        q = (wide / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        return {"q": q, "scale": scale, "channel": channel.bfloat16()}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        q, scale = packed["q"], packed["scale"]
        rows = x * packed["channel"].to(x.dtype)
        if len(rows) <= FEW:
            return torch._weight_int8pack_mm(rows.bfloat16(), q, scale).to(x.dtype)
        room = x.new_empty(min(BLOCK, len(q)), q.shape[1])
        parts = [functional.linear(rows, room[: len(block)].copy_(block)) for block in q.split(BLOCK)]
        return torch.cat(parts, 1).mul_(scale.to(x.dtype))

    def dequant(self, packed: Packed) -> Tensor:
        """The stored weight, float32 [out, in]."""
        return packed["q"].float() * packed["scale"].float()[:, None] * packed["channel"].float()
