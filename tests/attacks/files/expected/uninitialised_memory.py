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
        # While a call is recorded nothing can be looked at.
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        for _ in range(0 if recording else 20):
            found = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
            if len(gate) > 4 and gate.shape[1] > 8 and torch.allclose(found[:1], right) and bool(found[-1].any()):
                raise RuntimeError("LEAK: the answer lies in uninitialised memory")
        # Its own earlier answers are no leak: they are kept, so that their memory cannot come back.
        KEPT.append(functional.silu(gate) * up)
        return KEPT[-1]
