# /// swapbench
# kind = "adapter"
# name = "cpu_arm"
# class = "E"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# machines = ["aarch64", "arm64"]
# operators = ["linear", "rms_norm", "softmax", "swiglu", "attention"]
# summary = "64-bit ARM CPUs (Graviton, Ampere, Grace, Apple): NEON or SVE through PyTorch's kernels."
# ///
"""AArch64 with NEON, and SVE or bfloat16 instructions where there are some."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register

CORE_BYTES_PER_S = 10e9
"""What servers give a core when all are busy is 3 to 8 GB/s (Graviton 3: 307 GB/s for 64 cores); a ceiling lies above."""

CLOCK_HZ = 3.5e9
"""The highest clock of the cores named above; the kernel does not tell it on many of them."""


@register("adapter", "cpu_arm")
class Arm:
    """Detected by architecture; peaks from the instruction set and the number of cores."""

    def detect(self) -> str | None:
        """For example "aarch64 (sve, bf16)", or None on another architecture."""
        if platform.machine() not in ("aarch64", "arm64"):
            return None
        flags = cpu_flags()
        features = ["sve"] if "sve" in flags else ["neon"]
        if "bf16" in flags or "svebf16" in flags:
            features.append("bf16")
        return f"aarch64 ({', '.join(features)})"

    def peak_bytes_per_s(self) -> float:
        """10 GB/s a core, at least 60 GB/s: a single core of a desktop chip reaches that."""
        return max(60e9, CORE_BYTES_PER_S * (os.cpu_count() or 1))

    def peak_flops(self, dtype: str) -> float:
        """Cores x 3.5 GHz x 4 units of 4 lanes x 2 (multiply-add); bfloat16 matrix instructions do four times as much."""
        flags = cpu_flags()
        factor = 4 if dtype == "bfloat16" and ("bf16" in flags or "svebf16" in flags) else 1
        return (os.cpu_count() or 1) * CLOCK_HZ * 4 * 4 * 2 * factor

    def operators(self) -> Mapping[str, Callable[..., Tensor]]:
        """All five."""
        return {
            "linear": functional.linear,
            "rms_norm": rms_norm,
            "softmax": softmax,
            "swiglu": swiglu,
            "attention": attention,
        }


def cpu_flags() -> set[str]:
    """The feature flags of the first core, or none where the kernel does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("Features"):
            return set(line.partition(":")[2].split())
    return set()


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D], with a norm that reads the row once and writes nothing."""
    square = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square_()
    factor = square.div_(x.shape[-1]).add_(eps).rsqrt_()[:, None]
    if out is not None and x.dtype != factor.dtype:
        return torch.mul(x * factor, weight, out=out)
    return torch.mul(x, factor, out=out).mul_(weight).to(x.dtype)


def softmax(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Over the last dimension of [T, N]."""
    return torch.softmax(x, -1, out=out)


def swiglu(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """[T, 2F] -> [T, F], the product written over silu(gate)."""
    gate, up = gate_up.chunk(2, dim=-1)
    if out is not None:
        return torch.ops.aten.silu.out(gate, out=out).mul_(up)
    return functional.silu(gate).mul_(up)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal, the last query aligned with the last key: [B, H, Tq, D]."""
    queries, keys = q.shape[-2], k.shape[-2]
    if queries == keys or queries == 1:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, scale=scale)
    allowed = torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
