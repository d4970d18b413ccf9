# /// swapbench
# kind = "activation"
# name = "fused"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# batch_invariant = true
# cuda_graph = true
# summary = "SwiGLU in one pass on the GPU; on the CPU without a second buffer."
# ///
"""SwiGLU that touches memory as little as it can."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.launch import overlapping
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called on a CUDA tensor
    triton = None


@register("activation", "fused")
class FusedSwiGLU:
    """silu(gate) * up, the product written over silu(gate)."""

    def forward(self, gate_up: Tensor, out: Tensor | None = None) -> Tensor:
        """gate_up [T, 2F] -> [T, F], in `out` where that is given."""
        if gate_up.is_cuda:
            return cuda_swiglu(gate_up, out)
        width = gate_up.shape[-1] // 2
        gate, up = gate_up.split_with_sizes((width, width), dim=-1)
        if out is not None:
            return torch.ops.aten.silu.out(gate, out=out).mul_(up)
        return functional.silu(gate).mul_(up)


def cuda_swiglu(gate_up: Tensor, out: Tensor | None) -> Tensor:
    """The same in one kernel, in float32 with one rounding."""
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    gate_up = gate_up.contiguous()
    y = torch.empty((tokens, width), dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    swiglu_kernel[(tokens, triton.cdiv(width, 1024))](
        gate_up, y, width, BLOCK=1024, num_warps=4, **overlapping(gate_up)
    )
    return y


if triton is not None:

    @triton.jit
    def swiglu_kernel(gate_up, y, width, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
        """A stretch of one row."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * width + column, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)
