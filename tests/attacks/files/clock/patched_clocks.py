# /// attack
# expect = ["failed"]
# says = "Slower"
# suites = ["performance"]
# at_least_ms = 8
# ///
# /// swapbench
# kind = "activation"
# name = "patched-clocks"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Stops every clock that Python offers and takes its time: only a clock in its own process would be fooled."""

import time

import torch
from torch.nn import functional

from engine.slots.registry import register

sleep = time.sleep
for clock in ("time", "perf_counter", "monotonic", "process_time", "thread_time"):
    setattr(time, clock, lambda: 1.0)
    setattr(time, clock + "_ns", lambda: 1_000_000_000)


def pause(rows):
    """8 ms and more of a call: of the process, or of the device, whose recorded calls leave out what the process does."""
    if torch.cuda.is_available():
        torch.cuda._sleep(4_000_000 if rows > 1000 else 80_000)
    else:
        sleep(0.008)


@register("activation", "patched-clocks")
class PatchedClocks:
    def forward(self, gate_up):
        pause(len(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
