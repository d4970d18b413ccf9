# /// swapbench
# kind = "normalization"
# name = "fused"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# batch_invariant = true
# cuda_graph = true
# summary = "Addition and normalization in one pass on the GPU, and in the fewest passes that PyTorch offers on the CPU."
# ///
"""RMS normalization that touches memory as little as it can: it does almost no arithmetic for each byte."""

import torch
from torch import Tensor

from engine.slots.launch import overlapping
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called on a CUDA tensor
    triton = None


@register("normalization", "fused")
class FusedRMSNorm:
    """The formula of `plain` with one rounding."""

    def __init__(self, eps: float) -> None:
        self.eps = eps
        self._eps = torch.tensor(eps, dtype=torch.float32, device="cpu")

    def forward(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, out: tuple[Tensor, Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, D], weight [D] -> (normalized [T, D], x + residual [T, D]), in `out` where that is given."""
        if x.is_cuda:
            return cuda_norm(x, residual, weight, self.eps, out)
        y, total = (None, None) if out is None else out
        hidden = x if residual is None else torch.add(x, residual, out=total)
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
        factor = torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        if y is not None and x.dtype != factor.dtype:
            return torch.mul(hidden * factor, weight, out=y), hidden
        return torch.mul(hidden, factor, out=y).mul_(weight).to(x.dtype), hidden


def cuda_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: tuple[Tensor, Tensor | None] | None
) -> tuple[Tensor, Tensor]:
    """The same in one kernel."""
    tokens, width = x.shape
    x = x.contiguous()
    y, total = (torch.empty_like(x), None) if out is None else out
    hidden = x if residual is None else torch.empty_like(x) if total is None else total
    block = triton.next_power_of_2(width)
    # Short rows (normalization of heads) share a program: one row alone would leave most of its threads idle.
    rows = max(1, 2048 // block)
    norm_kernel[(triton.cdiv(tokens, rows),)](
        x,
        x if residual is None else residual.contiguous(),
        weight,
        y,
        hidden,
        tokens,
        width,
        eps,
        ROWS=rows,
        BLOCK=block,
        ADD=residual is not None,
        num_warps=4 if block * rows < 4096 else 8 if block <= 8192 else 16,
        **overlapping(x),
    )
    return y, hidden


if triton is not None:

    @triton.jit
    def norm_kernel(
        x,
        residual,
        weight,
        y,
        hidden,
        tokens,
        width,
        eps,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        ADD: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS whole rows, kept in registers between the sum and the product."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        column = tl.arange(0, BLOCK)
        w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < tokens)[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        h = tl.load(x + at, mask=inside, other=0.0)
        if ADD:
            other = tl.load(residual + at, mask=inside, other=0.0)
            # Rounded to the dtype before it is normalized: that is what later layers see.
            h = (h.to(tl.float32) + other.to(tl.float32)).to(h.dtype)
            tl.store(hidden + at, h, mask=inside)
        wide = h.to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(wide * wide, 1) / width + eps)
        tl.store(y + at, (wide * factor[:, None] * w[None, :]).to(y.dtype.element_ty), mask=inside)
