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

from engine.slots.launch import overlapping
from engine.slots.quantization import Packed
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called on a CUDA tensor
    triton = None

GEMM_TOKENS = 64
"""Up to so many tokens the weight is unpacked inside the product; beyond, unpacking it once costs little beside it."""


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
            return cuda_linear(x, q, scale)
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


def cuda_linear(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """x [T, in] times (q * scale)^T on the GPU: [T, out]."""
    tokens, inputs = x.shape
    outputs = q.shape[0]
    if tokens > GEMM_TOKENS:
        return functional.linear(x, q.to(x.dtype)) * scale.to(x.dtype)
    y = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    x = x.contiguous()
    if tokens == 1:
        block = 1024 if inputs % 1024 == 0 else 512
        gemv_kernel[(triton.cdiv(outputs, 2),)](
            x,
            q,
            scale,
            y,
            outputs,
            inputs,
            ROWS=2,
            BLOCK=block,
            EVEN=inputs % block == 0,
            num_warps=2,
            **overlapping(x),
        )
        return y
    columns = 64 if outputs >= 16384 else 32 if outputs >= 8192 else 16
    height = max(16, triton.next_power_of_2(tokens))
    gemm_kernel[(triton.cdiv(outputs, columns),)](
        x,
        q,
        scale,
        y,
        tokens,
        outputs,
        inputs,
        HEIGHT=height,
        COLUMNS=columns,
        BLOCK=128,
        num_warps=4,
        num_stages=4,
        **overlapping(x),
    )
    return y


if triton is not None:

    @triton.jit
    def gemv_kernel(
        x,
        q,
        scale,
        y,
        outputs,
        inputs,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        EVEN: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS outputs of one token. Partial sums stay in each thread's registers until the end.

        The first stretch of weights is on its way before the kernel's turn has come.
        """
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = row < outputs
        column = tl.arange(0, BLOCK)
        at_weight = q + row.to(tl.int64)[:, None] * inputs + column[None, :]
        known = column < inputs
        first = tl.load(at_weight, mask=inside[:, None] & known[None, :], eviction_policy="evict_first")
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        a = tl.load(x + column, mask=known, other=0.0).to(tl.float32)
        # What was not loaded may be anything, NaN too, which no zero beside it makes harmless.
        total = tl.where(known[None, :], first.to(tl.float32), 0.0) * a[None, :]
        for at in range(BLOCK, inputs, BLOCK):
            if EVEN:
                a = tl.load(x + at + column).to(tl.float32)
                w = tl.load(at_weight + at, mask=inside[:, None], eviction_policy="evict_first").to(tl.float32)
            else:
                known = at + column < inputs
                a = tl.load(x + at + column, mask=known, other=0.0).to(tl.float32)
                w = tl.load(at_weight + at, mask=inside[:, None] & known[None, :], eviction_policy="evict_first")
                w = tl.where(known[None, :], w.to(tl.float32), 0.0)
            total += w * a[None, :]
        result = tl.sum(total, 1) * tl.load(scale + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row, result.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def gemm_kernel(
        x,
        q,
        scale,
        y,
        tokens,
        outputs,
        inputs,
        HEIGHT: tl.constexpr,
        COLUMNS: tl.constexpr,
        BLOCK: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """COLUMNS outputs of up to HEIGHT tokens."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        token = tl.arange(0, HEIGHT)
        row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        inside = row < outputs
        total = tl.zeros((HEIGHT, COLUMNS), dtype=tl.float32)
        for at in range(0, inputs, BLOCK):
            column = at + tl.arange(0, BLOCK)
            known = column < inputs
            a = tl.load(
                x + token[:, None] * inputs + column[None, :],
                mask=(token < tokens)[:, None] & known[None, :],
                other=0.0,
            )
            w = tl.load(
                q + row.to(tl.int64)[None, :] * inputs + column[:, None],
                mask=inside[None, :] & known[:, None],
                eviction_policy="evict_first",
            )
            w = tl.where(known[:, None], w.to(a.dtype), 0.0).to(a.dtype)
            total = tl.dot(a, w, total, input_precision="ieee")
        total *= tl.load(scale + row, mask=inside, other=0.0).to(tl.float32)[None, :]
        tl.store(
            y + token[:, None] * outputs + row[None, :],
            total.to(y.dtype.element_ty),
            mask=(token < tokens)[:, None] & inside[None, :],
        )
