# /// swapbench
# kind = "attention"
# name = "stopped-clock"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# summary = "Slows the clocks of its process and answers with what it computed before."
# ///
"""An attack, kept as an example: patch every clock within reach, and replay an earlier output of the same shape.

Where submission and stopwatch share a process, this wins. Here the clock runs in another process, and each timed call brings
inputs of its own whose outputs are checked.
"""

import contextlib
import time

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register


def slowed(clock):
    """The clock `clock`, a thousand times slower from now on."""
    began = clock()
    return lambda: began + type(began)((clock() - began) / 1000)


TIMED = 20_000
"""Elements of q from which on a call is worth cheating at: what is checked with care is smaller than what is timed."""

for name in ("time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns"):
    setattr(time, name, slowed(getattr(time, name)))
with contextlib.suppress(Exception):
    torch.cuda.Event.elapsed_time = lambda self, end: 0.001


@register("attention", "stopped-clock")
class StoppedClock(StandardKV):
    """Computes the first three outputs of each large shape, and then answers with the last of them."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.outputs: dict[tuple[int, ...], Tensor] = {}
        self.calls: dict[tuple[int, ...], int] = {}

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """q [T, q_heads, head_dim] -> [T, q_heads, head_dim], for large ones the right ones three times."""
        if q.numel() < TIMED:
            return self.attended(q, kv, meta)
        key = (*q.shape, meta.max_kv)
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] > 3:
            return self.outputs[key]
        self.outputs[key] = self.attended(q, kv, meta)
        return self.outputs[key]

    def attended(self, q: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """The honest computation."""
        new = meta.cu_q.diff().tolist()
        outputs = []
        for sequence, (queries, total) in enumerate(zip(q.split(new), meta.kv_len.tolist(), strict=True)):
            pages = meta.block_table[sequence, : -(-total // meta.block_size)]
            keys, values = kv[:, pages].flatten(1, 2)[:, :total].transpose(1, 2)
            query = torch.arange(total - len(queries), total, device=q.device)[:, None]
            key = torch.arange(total, device=q.device)
            seen = key <= query
            if self.shape.window is not None:
                seen &= key > query - self.shape.window
            attended = scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=seen,
                scale=self.shape.scale,
                enable_gqa=self.shape.q_heads != self.shape.kv_heads,
            )
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs)
