"""Triton kernels of the forward pass itself, for NVIDIA GPUs; elsewhere, and for autograd, plain PyTorch does the same."""

import math

import torch
from torch import Tensor

from engine.slots.launch import overlapping

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; `usable` is then False
    triton = None


def usable(x: Tensor) -> bool:
    """Whether the kernels can stand in for PyTorch on `x` now: on CUDA, without autograd, not while compiling."""
    if torch.compiler.is_compiling() or triton is None:
        return False
    return x.is_cuda and torch.is_inference_mode_enabled()


def multiply_row(x: Tensor, weight: Tensor) -> Tensor:
    """`x` [1, columns] times the transposed `weight` [rows, columns], summed in float32: [1, rows].

    Reads the first stretch of its weights while the kernel before it still runs.
    """
    rows, columns = weight.shape
    y = torch.empty((1, rows), dtype=x.dtype, device=x.device)
    block = 2048 if columns % 2048 == 0 else min(1024, triton.next_power_of_2(columns))
    row_kernel[(triton.cdiv(rows, 2),)](
        x,
        weight,
        y,
        rows,
        columns,
        ROWS=2,
        BLOCK=block,
        EVEN=columns % block == 0,
        num_warps=max(2, block // 256),
        **overlapping(x),
    )
    return y


def rotated_qkv(qkv: Tensor, cos_sin: Tensor, q_heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits `qkv` [T, (q_heads + 2 kv_heads) dim] and rotates q and k by `cos_sin` [T, dim] (see engine.models.rope).

    Returns contiguous q [T, q_heads, dim], k and v [T, kv_heads, dim], in one kernel.
    """
    tokens, dim = len(qkv), cos_sin.shape[1]
    q = torch.empty((tokens, q_heads, dim), dtype=qkv.dtype, device=qkv.device)
    k = torch.empty((tokens, kv_heads, dim), dtype=qkv.dtype, device=qkv.device)
    v = torch.empty_like(k)
    together = math.gcd(q_heads, kv_heads, 8)
    # Only powers of two are ranges in Triton; a group of heads never holds both queries and keys.
    together &= -together
    rotate_kernel[(tokens, (q_heads + 2 * kv_heads) // together)](
        qkv,
        cos_sin,
        q,
        k,
        v,
        Q_HEADS=q_heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=triton.next_power_of_2(dim // 2),
        TOGETHER=together,
        num_warps=2,
        **overlapping(qkv),
    )
    return q, k, v


if triton is not None:

    @triton.jit
    def row_kernel(
        x, weight, y, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, OVERLAP: tl.constexpr
    ):
        """ROWS outputs. The first stretch of weights is on its way before the kernel's turn has come."""
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None]
        column = tl.arange(0, BLOCK)
        known = column < columns
        at = weight + row.to(tl.int64)[:, None] * columns + column[None, :]
        w = tl.load(at, mask=inside & known[None, :], other=0.0, eviction_policy="evict_first")
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        a = tl.load(x + column, mask=known, other=0.0)
        total = w.to(tl.float32) * a.to(tl.float32)[None, :]
        for start in range(BLOCK, columns, BLOCK):
            if EVEN:
                a = tl.load(x + start + column)
                w = tl.load(at + start, mask=inside, other=0.0, eviction_policy="evict_first")
            else:
                known = start + column < columns
                a = tl.load(x + start + column, mask=known, other=0.0)
                w = tl.load(at + start, mask=inside & known[None, :], other=0.0, eviction_policy="evict_first")
            total += w.to(tl.float32) * a.to(tl.float32)[None, :]
        tl.store(y + row, tl.sum(total, 1).to(y.dtype.element_ty), mask=row < rows)

    @triton.jit
    def rotate_kernel(
        qkv,
        cos_sin,
        q,
        k,
        v,
        Q_HEADS: tl.constexpr,
        KV_HEADS: tl.constexpr,
        DIM: tl.constexpr,
        HALF: tl.constexpr,
        TOGETHER: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """TOGETHER heads of one token."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        token = tl.program_id(0).to(tl.int64)
        first_head = tl.program_id(1) * TOGETHER
        head = tl.arange(0, TOGETHER)[:, None]
        at = tl.arange(0, HALF)[None, :]
        inside = at < DIM // 2
        source = qkv + (token * (Q_HEADS + 2 * KV_HEADS) + first_head + head) * DIM + at
        first = tl.load(source, mask=inside, other=0.0)
        second = tl.load(source + DIM // 2, mask=inside, other=0.0)
        if first_head >= Q_HEADS + KV_HEADS:
            to = v + (token * KV_HEADS + first_head - Q_HEADS - KV_HEADS + head) * DIM + at
            tl.store(to, first, mask=inside)
            tl.store(to + DIM // 2, second, mask=inside)
        else:
            cos = tl.load(cos_sin + token * DIM + at, mask=inside, other=0.0)
            sin = tl.load(cos_sin + token * DIM + DIM // 2 + at, mask=inside, other=0.0)
            low = (first * cos - second * sin).to(q.dtype.element_ty)
            high = (second * cos + first * sin).to(q.dtype.element_ty)
            if first_head >= Q_HEADS:
                to_k = k + (token * KV_HEADS + first_head - Q_HEADS + head) * DIM + at
                tl.store(to_k, low, mask=inside)
                tl.store(to_k + DIM // 2, high, mask=inside)
            else:
                to_q = q + (token * Q_HEADS + first_head + head) * DIM + at
                tl.store(to_q, low, mask=inside)
                tl.store(to_q + DIM // 2, high, mask=inside)
