# /// swapbench
# kind = "adapter"
# name = "cpu_x86"
# class = "E"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# machines = ["x86_64", "AMD64"]
# operators = ["linear", "rms_norm", "softmax", "swiglu", "attention"]
# summary = "x86-64 CPUs: operators with the fewest passes over memory; bfloat16 products where the CPU has them."
# ///
"""x86-64 with AVX2 or AVX-512."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register

CHANNEL_BYTES_PER_S = 51.2e9
"""Two channels of DDR4-3200, the least that current servers give a socket: 2 x 8 bytes x 3.2e9/s. A core can use about
half of it, and a few cores all of it, so this is also a ceiling for a few cores of a larger machine."""


@register("adapter", "cpu_x86")
class X86:
    """Detected by architecture; peaks from the instruction set, the number of cores and their clock."""

    def detect(self) -> str | None:
        """For example "x86_64 (avx512, bf16)", or None on another architecture."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return None
        flags = cpu_flags()
        features = [name for name, flag in (("avx512", "avx512f"), ("avx2", "avx2")) if flag in flags][:1]
        if "avx512_bf16" in flags or "amx_bf16" in flags:
            features.append("bf16")
        return f"x86_64 ({', '.join(features) or 'sse2'})"

    def peak_bytes_per_s(self) -> float:
        """Two DDR4-3200 channels for every eight cores, at least one pair."""
        return CHANNEL_BYTES_PER_S * max(1, (os.cpu_count() or 1) // 8)

    def peak_flops(self, dtype: str) -> float:
        """Cores x clock x lanes x 2 units x 2 (multiply-add); bfloat16 instructions do twice as much, AMX sixteen times."""
        flags = cpu_flags()
        lanes = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
        factor = 1
        if dtype == "bfloat16":
            factor = 16 if "amx_bf16" in flags else 2 if "avx512_bf16" in flags else 1
        return (os.cpu_count() or 1) * clock_hz() * lanes * 2 * 2 * factor

    def operators(self) -> Mapping[str, Callable[..., Tensor]]:
        """All five."""
        return {
            "linear": functional.linear,
            "rms_norm": rms_norm,
            "softmax": softmax,
            "swiglu": swiglu,
            "attention": attention,
        }


def cpu_info() -> str:
    """/proc/cpuinfo, or nothing where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def cpu_flags() -> set[str]:
    """The feature flags of the first core."""
    for line in cpu_info().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def clock_hz() -> float:
    """The clock of the first core in Hz, at least that of a usual turbo: a peak must not lie under what is reached."""
    for line in cpu_info().splitlines():
        if line.startswith("cpu MHz"):
            return max(3.5e9, float(line.partition(":")[2]) * 1e6)
    return 3.5e9


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D]. A dot product of each row with itself reads it once and writes nothing."""
    if x.dtype == torch.float32:
        square = torch.linalg.vecdot(x, x)
    else:
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
