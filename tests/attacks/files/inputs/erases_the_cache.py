# /// attack
# expect = ["failed"]
# says = "KV cache is wrong"
# ///
# /// swapbench
# kind = "attention"
# name = "erases-the-cache"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Answers rightly, and wipes the history that other steps will need."""

from engine.attention.sdpa import Sdpa
from engine.slots.registry import register


@register("attention", "erases-the-cache")
class ErasesTheCache(Sdpa):
    def forward(self, q, k, v, kv, meta):
        out = super().forward(q, k, v, kv, meta)
        if len(q) > 1:
            kv[:, meta.block_table[0, 0]] = 0
        return out
