# /// attack
# expect = ["passed", "failed", "timed_out_code"]
# ///
# /// swapbench
# kind = "activation"
# name = "output-flood"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Writes without end to stdout and stderr."""

import os
import threading

from torch.nn import functional

from engine.slots.registry import register


def flood():
    line = b"x" * 65536
    for _ in range(4000):
        os.write(1, line)
        os.write(2, line)


threading.Thread(target=flood, daemon=True).start()


@register("activation", "output-flood")
class OutputFlood:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
