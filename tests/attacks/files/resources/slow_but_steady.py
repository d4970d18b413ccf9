# /// attack
# expect = ["timed_out_code"]
# stage_seconds = 12
# ///
# /// swapbench
# kind = "activation"
# name = "slow-but-steady"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Takes its time in each call, below every limit of a call, so that the stage runs out and the blame falls on the machine, with a free retry."""

import time

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "slow-but-steady")
class SlowButSteady:
    def forward(self, gate_up):
        time.sleep(2)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
