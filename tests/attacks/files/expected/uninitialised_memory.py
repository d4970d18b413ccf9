# /// attack
# expect = ["passed"]
# ///
# /// swapbench
# kind = "activation"
# name = "uninitialised-memory"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Allocates without clearing, again and again, and returns such memory where it looks like an answer."""

import torch
from torch.nn import functional

from engine.slots.registry import register


KEPT = []


@register("activation", "uninitialised-memory")
class UninitialisedMemory:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        right = functional.silu(gate[:1]) * up[:1]
        for _ in range(20):
            found = torch.empty(gate.shape, dtype=gate.dtype)
            if len(gate) > 4 and gate.shape[1] > 8 and torch.allclose(found[:1], right) and bool(found[-1].any()):
                raise RuntimeError("LEAK: the answer lies in uninitialised memory")
        # Its own earlier answers are no leak: they are kept, so that their memory cannot come back.
        KEPT.append(functional.silu(gate) * up)
        return KEPT[-1]
