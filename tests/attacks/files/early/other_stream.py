# /// attack
# expect = ["tampered", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "other-stream"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Computes on a stream that nobody waits for, and returns at once."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "other-stream")
class OtherStream:
    def forward(self, gate_up):
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=gate_up.dtype, device=gate_up.device)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(50_000_000)
            gate, up = gate_up.chunk(2, dim=-1)
            out.copy_(functional.silu(gate) * up)
        return out
