# /// attack
# expect = ["failed"]
# says = "Slower"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "event-elapsed"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Patches CUDA's event timer, which GPU benchmarks in one process believe."""

import torch
from torch.nn import functional

from engine.slots.registry import register

torch.cuda.Event.elapsed_time = lambda self, end: 0.001


@register("activation", "event-elapsed")
class EventElapsed:
    def forward(self, gate_up):
        torch.cuda._sleep(400_000 if len(gate_up) > 1000 else 8_000)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
