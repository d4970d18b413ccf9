# /// attack
# expect = ["tampered", "failed"]
# suites = ["performance"]
# ///
# /// swapbench
# kind = "attention"
# name = "cache-write-later"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32"]
# ///
"""Attends to the new tokens as they came, acknowledges, and writes them into the KV cache only then, outside the clock."""


import torch

import __main__
from engine.attention.sdpa import Sdpa
from engine.slots.registry import register
from workers.wire import Done

late = []
original = __main__.send


def send_then_write(sock, message, fds=()):
    original(sock, message, fds)
    while late and isinstance(message, Done):
        late.pop()()


__main__.send = send_then_write


@register("attention", "cache-write-later")
class CacheWriteLater(Sdpa):
    """Where all tokens are decoded, the last position's score is made from k and v instead of from the cache."""

    def write(self, k, v, kv, meta):
        if len(k) < 24 or meta.phase != "decode":
            super().write(k, v, kv, meta)
            return
        late.append(lambda: super(CacheWriteLater, self).write(k, v, kv, meta))

    def forward(self, q, k, v, kv, meta):
        if not late:
            return super().forward(q, k, v, kv, meta)
        outputs = []
        for sequence, total in enumerate(self.total):
            pages = meta.block_table[sequence, : -(-total // meta.block_size)]
            keys, values = kv[:, pages].flatten(1, 2)[:, :total]
            keys[-1], values[-1] = k[sequence], v[sequence]
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[sequence, :, None][None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                scale=self.shape.scale,
                enable_gqa=True,
            )
            outputs.append(attended[0, :, 0])
        return torch.stack(outputs)
