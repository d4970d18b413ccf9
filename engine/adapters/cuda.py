# /// swapbench
# kind = "adapter"
# name = "cuda"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# operators = ["linear", "rms_norm", "softmax", "swiglu", "attention"]
# needs = ["triton"]
# summary = "NVIDIA GPUs: cuBLAS and flash attention, with row-wise operators in one Triton kernel each."
# ///
"""NVIDIA GPUs from Ampere on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # the header says that it is needed; the file can still be read without it
    triton = None

PEAKS = {
    # compute capability: (bytes/s, float32 FLOP/s, 16-bit tensor-core FLOP/s), from the data sheets of the fastest model
    80: (2.039e12, 19.5e12, 312e12),
    86: (1.008e12, 40.0e12, 160e12),
    89: (1.008e12, 82.6e12, 330e12),
    90: (4.8e12, 67e12, 989e12),
    100: (8.0e12, 80e12, 2250e12),
}


@register("adapter", "cuda")
class Cuda:
    """Peaks by compute capability, from data sheets; the nearest lower one where a GPU is newer than the table."""

    def detect(self) -> str | None:
        """The GPU's name, or None where there is none."""
        return torch.cuda.get_device_name() if torch.cuda.is_available() else None

    def peak_bytes_per_s(self) -> float:
        """Bytes/s of device memory."""
        return self.peaks()[0]

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s, on tensor cores for 16-bit dtypes."""
        return self.peaks()[1 if dtype == "float32" else 2]

    @staticmethod
    def peaks() -> tuple[float, float, float]:
        """The entry of PEAKS for this GPU."""
        major, minor = torch.cuda.get_device_capability()
        known = [capability for capability in PEAKS if capability <= 10 * major + minor]
        return PEAKS[max(known, default=80)]

    def operators(self) -> Mapping[str, Callable[..., Tensor]]:
        """All five."""
        return {
            "linear": functional.linear,
            "rms_norm": rms_norm,
            "softmax": softmax,
            "swiglu": swiglu,
            "attention": attention,
        }


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D]."""
    tokens, width = x.shape
    x = x.contiguous()
    y = torch.empty_like(x) if out is None else out
    block = triton.next_power_of_2(width)
    rows = max(1, 2048 // block)
    norm_kernel[(triton.cdiv(tokens, rows),)](
        x, weight, y, tokens, width, eps, ROWS=rows, BLOCK=block, num_warps=4 if block * rows <= 4096 else 8
    )
    return y


def softmax(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Over the last dimension of [T, N]."""
    return torch.softmax(x, -1, out=out)


def swiglu(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """[T, 2F] -> [T, F]."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    gate_up = gate_up.contiguous()
    y = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    swiglu_kernel[(tokens, triton.cdiv(width, 1024))](gate_up, y, width, BLOCK=1024, num_warps=4)
    return y


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal, the last query aligned with the last key: [B, H, Tq, D]."""
    queries, keys = q.shape[-2], k.shape[-2]
    if queries == keys or queries == 1:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, scale=scale)
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril_(keys - queries)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)


if triton is not None:

    @triton.jit
    def norm_kernel(x, weight, y, tokens, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """ROWS whole rows, kept in registers between the sum and the product."""
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = (row < tokens)[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / width + eps)
        w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
        tl.store(y + at, (wide * factor[:, None] * w[None, :]).to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def swiglu_kernel(gate_up, y, width, BLOCK: tl.constexpr):
        """A stretch of one row."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * width + column, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)
