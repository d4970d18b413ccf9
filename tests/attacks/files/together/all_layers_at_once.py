# /// attack
# expect = ["failed"]
# says = "wrong|off by|differs"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "attention"
# name = "all-layers-at-once"
# class = "E"
# devices = ["cuda"]
# dtypes = ["bfloat16"]
# ///
"""Several layers come in one message: it attends for all of them in the first one's call, where their queries lie, and hands that out after it."""

import torch

from engine.attention.sdpa import Sdpa
from engine.slots.registry import register


def pieces(first, count):
    """`first` and what lies after it in its buffer, `count` pieces of the same shape."""
    size = first.numel()
    return torch.as_strided(first, (count, *first.shape), (size, *first.stride()), first.storage_offset())


@register("attention", "all-layers-at-once")
class AllLayersAtOnce(Sdpa):
    def plan(self, meta):
        super().plan(meta)
        self.known = None

    def forward(self, q, k, v, kv, meta):
        layers = kv.untyped_storage().nbytes() // (kv.numel() * kv.element_size())
        if self.known is None:
            room = q.untyped_storage().nbytes() // (q.numel() * q.element_size())
            if layers == 1 or room < layers:
                return super().forward(q, k, v, kv, meta)
            self.known = []
            for each in zip(pieces(q, layers), pieces(k, layers), pieces(v, layers), pieces(kv, layers), strict=True):
                self.write(*each[1:], meta)
                self.known.append(super().forward(*each, meta))
        return self.known.pop(0)
