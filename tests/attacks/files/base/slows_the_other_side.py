# /// attack
# expect = ["passed", "failed", "inconclusive", "tampered", "timed_out_code"]
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "slows-the-other-side"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Leaves memory eaters and busy children behind, fills every folder, and lowers its own share of memory traffic: whatever could slow the next process down."""

import os

import torch
from torch.nn import functional

from engine.slots.registry import register

for _ in range(4):
    if os.fork() == 0:
        os.setsid()
        block = torch.ones(20_000_000)
        while True:
            block.mul_(1.0)
for folder in ("/tmp", "/dev/shm"):
    try:
        with open(f"{folder}/filler", "wb") as file:
            for _ in range(500):
                file.write(bytes(1 << 20))
    except OSError:
        continue


@register("activation", "slows-the-other-side")
class SlowsTheOtherSide:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
