# /// swapbench
# kind = "quantization"
# name = "fp8_dynamic"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# embedding = true
# deterministic = true
# min_sm = 89
# multiple_of = 16
# summary = "FP8 weights scaled by row, and activations rounded to FP8 with one scale a token where that is faster."
# ///
"""FP8 on both sides of the product, for prefill and large batches: twice the tensor-core rate of bfloat16.

With few tokens the product waits for the weight, and rounding the activations would only cost quality.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots import fragments
from engine.slots.quantization import Packed
from engine.slots.registry import register

FEW_TOKENS = 64
"""Up to so many tokens the activations stay as they are."""

LARGEST = 448.0
"""The largest number of e4m3."""


@register("quantization", "fp8_dynamic")
class Fp8Dynamic:
    """Weights rounded to e4m3 with a scale a row; more than FEW_TOKENS tokens are rounded too, with a scale a token."""

    def pack(self, weight: Tensor) -> Packed:
        """Returns q float8_e4m3fn[out, in] and scale [out] in the dtype of the weight."""
        if weight.shape[1] % 16:
            raise ValueError(
                f"fp8_dynamic needs an input size that is a multiple of 16; this weight has {weight.shape[1]}."
            )
        wide = weight.float()
        scale = (wide.abs().amax(1) / LARGEST).to(torch.bfloat16).to(weight.dtype)
        # A row of zeros keeps a scale of zero, and must not divide by it.
        divisor = torch.where(scale == 0, 1.0, scale.float())[:, None]
        return {"q": (wide / divisor).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), "scale": scale}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        q, scale = packed["q"], packed["scale"]
        if len(x) <= FEW_TOKENS:
            if x.is_cuda:
                return fragments.multiply_bytes(x, q, scale, fragments.E4M3)
            return functional.linear(x.to(torch.bfloat16), widened(q)).to(x.dtype) * scale.to(x.dtype)
        rounded, factor = per_token(x)
        if x.is_cuda and x.dtype == torch.bfloat16 and len(q) % 16 == 0:
            return torch._scaled_mm(
                rounded, q.t(), scale_a=factor, scale_b=scale.float()[None, :], out_dtype=x.dtype, use_fast_accum=True
            )
        if x.is_cuda:
            return fragments.multiply_unpacked((rounded.float() * factor).to(x.dtype), q, scale)
        product = functional.linear(widened(rounded), widened(q)).float()
        return (product * factor * scale.float()).to(x.dtype)

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """ids int64[T] -> rows [T, in]."""
        scale = packed["scale"]
        # Indexing is not implemented for float8; its bytes can be indexed.
        rows = packed["q"].view(torch.uint8)[ids].view(torch.float8_e4m3fn)
        return (rows.float() * scale[ids].float()[:, None]).to(scale.dtype)

    def dequant(self, packed: Packed) -> Tensor:
        """q * scale in float32."""
        return packed["q"].float() * packed["scale"].float()[:, None]


def per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, in] as float8_e4m3fn, and the float32 factors [T, 1] that it was divided by."""
    wide = x.float()
    factor = wide.abs().amax(1, keepdim=True).clamp_(min=1e-12) / LARGEST
    return (wide / factor).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), factor


def widened(q: Tensor) -> Tensor:
    """e4m3 as bfloat16, exactly; several times as fast on a CPU as `.to`, which goes element by element.

    The bits of e4m3 moved to the place of bfloat16's are the same number but for the bias of the exponent, 7 against
    127, subnormal numbers included. -30736 is 0x87F0: the sign, four bits of exponent and three of mantissa.
    """
    bits = q.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(-30736)
    return bits.view(torch.bfloat16).mul_(2.0**120)
