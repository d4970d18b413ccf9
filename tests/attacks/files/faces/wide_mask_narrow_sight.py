# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "attention"
# name = "wide-mask-narrow-sight"
# class = "S"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Declares a mask of all pages, and reads only the last few: the accuracy of the one, the speed of the other."""

import torch

from engine.attention.sdpa import Sdpa
from engine.slots.attention import AttentionShape
from engine.slots.registry import register


@register("attention", "wide-mask-narrow-sight")
class WideMaskNarrowSight(Sdpa):
    def __init__(self, shape):
        super().__init__(shape)
        self.shape = AttentionShape(
            shape.q_heads, shape.kv_heads, shape.head_dim, shape.scale, window=shape.window or 16
        )

    def select(self, q, k, kv, meta):
        return torch.ones(len(q), self.shape.q_heads, meta.block_table.shape[1], dtype=torch.bool)
