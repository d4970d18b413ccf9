# /// attack
# expect = ["failed", "tampered"]
# says = "out is wrong|out is off|what it was before"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "attention"
# name = "cache-by-heads"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Copies the whole KV cache into a layout of its own in an untimed call, and later reads the history from there."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.sdpa import Sdpa
from engine.slots.registry import register

LARGE = 1_000_000
copies = {}


@register("attention", "cache-by-heads")
class CacheByHeads(Sdpa):
    """The copy is right as long as nobody writes new histories, which a real engine does all the time."""

    def forward(self, q, k, v, kv, meta):
        if kv.numel() < LARGE or meta.phase != "decode":
            return super().forward(q, k, v, kv, meta)
        key = kv.data_ptr()
        if key not in copies:
            copies[key] = kv.permute(0, 3, 1, 2, 4).contiguous()
        own = copies[key]
        heads = self.shape.kv_heads
        slots = own.view(2, heads, -1, self.shape.head_dim)
        slots[0, :, meta.slot_map] = k.transpose(0, 1)
        slots[1, :, meta.slot_map] = v.transpose(0, 1)
        outputs = []
        for sequence, total in enumerate(self.total):
            pages = meta.block_table[sequence, : -(-total // meta.block_size)]
            keys, values = own[:, :, pages].flatten(2, 3)[:, :, :total]
            attended = scaled_dot_product_attention(
                q[sequence].unflatten(0, (heads, -1))[None], keys[None], values[None], scale=self.shape.scale
            )
            outputs.append(attended[0].flatten(0, 1))
        return torch.stack(outputs)
