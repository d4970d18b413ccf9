# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "attention"
# name = "by-sampled-content"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Keeps outputs by a fingerprint of every hundredth query, in the hope that the rest comes again with it."""

from engine.attention.sdpa import Sdpa
from engine.slots.registry import register

outputs = {}


@register("attention", "by-sampled-content")
class BySampledContent(Sdpa):
    def forward(self, q, k, v, kv, meta):
        key = (q.shape, meta.max_kv, tuple(q.flatten()[::100].tolist()))
        if key not in outputs:
            outputs[key] = super().forward(q, k, v, kv, meta)
        return outputs[key]
