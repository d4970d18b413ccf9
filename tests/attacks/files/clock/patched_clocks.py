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

from torch.nn import functional

from engine.slots.registry import register

sleep = time.sleep
for clock in ("time", "perf_counter", "monotonic", "process_time", "thread_time"):
    setattr(time, clock, lambda: 1.0)
    setattr(time, clock + "_ns", lambda: 1_000_000_000)


@register("activation", "patched-clocks")
class PatchedClocks:
    def forward(self, gate_up):
        sleep(0.008)
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
