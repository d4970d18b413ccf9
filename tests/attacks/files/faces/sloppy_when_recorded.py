# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "sloppy-when-recorded"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Exact in every call that runs, and half of the work in the one that is recorded and replayed ever after."""

import torch
from torch.nn import functional

from engine.slots.registry import register


@register("activation", "sloppy-when-recorded")
class SloppyWhenRecorded:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate)
        rows = len(out) // 2 if torch.cuda.is_current_stream_capturing() else len(out)
        out[:rows].mul_(up[:rows])
        return out
