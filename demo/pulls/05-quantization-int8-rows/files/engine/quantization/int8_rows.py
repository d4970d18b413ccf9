# /// swapbench
# kind = "quantization"
# name = "int8-rows"
# class = "Q8"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# deterministic = true
# summary = "8-bit weights with a scale for each output channel."
# ///
"""Weight-only int8 for the CPU: a quarter of float32's bytes. A token or a few read the weight once, as it is stored."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.quantization import Packed
from engine.slots.registry import register

FEW = 8
"""Up to so many tokens PyTorch's kernel that multiplies with int8 directly is faster than unpacking the weight first."""
BRIEF = bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16"))
"""Whether the processor multiplies bfloat16, which holds every q exactly, in less time than float32."""


@register("quantization", "int8-rows")
class Int8Rows:
    """weight[o, i] = q[o, i] * scale[o], q from -127 to 127."""

    def __init__(self) -> None:
        # Weights are unpacked into the same memory again and again: the system clears new memory page by page, which takes longer.
        self.room = torch.empty(0)

    def pack(self, weight: Tensor) -> Packed:
        """weight [out, in] -> q int8[out, in], scale bfloat16[out]."""
        wide = weight.float()
        # Rounded first, so that q is chosen for the scale that is stored. A row of zeros must not divide by zero.
        scale = (wide.abs().amax(1) / 127).clamp_(min=1e-30).bfloat16()
        return {"q": (wide / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), "scale": scale}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        q, scale = packed["q"], packed["scale"]
        if len(x) <= FEW:
            return torch._weight_int8pack_mm(x.bfloat16(), q, scale).to(x.dtype)
        rows = x.bfloat16() if BRIEF else x
        if self.room.numel() < q.numel() or self.room.dtype != rows.dtype:
            self.room = rows.new_empty(q.numel())
        weight = self.room[: q.numel()].view(q.shape).copy_(q)
        return functional.linear(rows, weight).to(x.dtype).mul_(scale.to(x.dtype))

    def dequant(self, packed: Packed) -> Tensor:
        """The stored weight, float32 [out, in]."""
        return packed["q"].float() * packed["scale"].float()[:, None]
