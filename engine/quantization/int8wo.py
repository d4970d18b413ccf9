# /// swapbench
# kind = "quantization"
# name = "int8wo"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# embedding = true
# deterministic = true
# summary = "8-bit integers with one scale a row; activations stay as they are."
# ///
"""Weight-only int8: half the bytes of bfloat16, read once, summed in float32."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots import fragments
from engine.slots.quantization import Packed
from engine.slots.registry import register


@register("quantization", "int8wo")
class Int8WeightOnly:
    """Symmetric, rounded to nearest, scaled so that the largest weight of a row is 127."""

    def pack(self, weight: Tensor) -> Packed:
        """Returns q int8[out, in] and scale [out] in the dtype of the weight."""
        wide = weight.float()
        # The CPU's kernel takes bfloat16 scales, so the scale is one that bfloat16 holds.
        scale = (wide.abs().amax(1) / 127.0).to(torch.bfloat16).to(weight.dtype)
        # A row of zeros keeps a scale of zero, and must not divide by it.
        divisor = torch.where(scale == 0, 1.0, scale.float())[:, None]
        return {"q": (wide / divisor).round_().clamp_(-127, 127).to(torch.int8), "scale": scale}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]. On the CPU both factors are bfloat16, which holds every q exactly."""
        q, scale = packed["q"], packed["scale"]
        if x.is_cuda:
            return fragments.multiply_bytes(x, q, scale, fragments.INT8)
        rows = x.to(torch.bfloat16)
        if len(rows) <= 4:
            return torch._weight_int8pack_mm(rows, q, scale.to(torch.bfloat16)).to(x.dtype)
        return functional.linear(rows, q.to(torch.bfloat16)).to(x.dtype) * scale.to(x.dtype)

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """ids int64[T] -> rows [T, in]."""
        scale = packed["scale"]
        return (packed["q"][ids].float() * scale[ids].float()[:, None]).to(scale.dtype)

    def dequant(self, packed: Packed) -> Tensor:
        """q * scale in float32."""
        return packed["q"].float() * packed["scale"].float()[:, None]
