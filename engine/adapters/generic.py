# /// swapbench
# kind = "adapter"
# name = "generic"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# operators = ["linear", "rms_norm", "softmax", "swiglu", "attention"]
# summary = "PyTorch's own operators on whatever device there is."
# ///
"""The default adapter: plain PyTorch, with measured rather than published peaks."""

import platform
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.registry import register


@register("adapter", "generic")
class Generic:
    """Fits any machine; names a little more than what it measures, because a ceiling must not lie under the roof."""

    def detect(self) -> str | None:
        """The machine's architecture."""
        return platform.machine() or "unknown"

    def peak_bytes_per_s(self) -> float:
        """Bytes/s of the best of a few copies, read and write counted, times 1.5."""
        source = torch.ones(1 << 24)
        target = torch.empty_like(source)
        return 1.5 * 2 * source.nbytes / fastest(lambda: target.copy_(source))

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of the best of a few square products, times 1.5."""
        size = 512
        square = torch.ones(size, size, dtype=getattr(torch, dtype))
        return 1.5 * 2 * size**3 / fastest(lambda: square @ square)

    def operators(self) -> Mapping[str, Callable[..., Tensor]]:
        """All five."""
        return {
            "linear": functional.linear,
            "rms_norm": rms_norm,
            "softmax": softmax,
            "swiglu": swiglu,
            "attention": attention,
        }


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five runs."""
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D]."""
    normal = functional.rms_norm(x.float(), x.shape[-1:], eps=eps)
    return torch.mul(normal, weight.float(), out=out).to(x.dtype)


def softmax(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Over the last dimension of [T, N]."""
    return torch.softmax(x, -1, out=out)


def swiglu(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """[T, 2F] -> [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.mul(functional.silu(gate), up, out=out)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal, the last query aligned with the last key: [B, H, Tq, D]."""
    queries, keys = q.shape[-2], k.shape[-2]
    if queries == keys or queries == 1:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, scale=scale)
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
