# /// attack
# expect = ["tampered", "failed"]
# says = "outside the clock|Slower"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "watches-its-memory"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Polls its own memory map for buffers of calls to come."""

import threading

from torch.nn import functional

from engine.slots.registry import register

seen = set()


def watch():
    while True:
        for line in open("/proc/self/maps"):
            if "memfd" in line:
                seen.add(line)


threading.Thread(target=watch, daemon=True).start()


@register("activation", "watches-its-memory")
class WatchesItsMemory:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
