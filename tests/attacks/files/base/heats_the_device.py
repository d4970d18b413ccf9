# /// attack
# expect = ["passed", "failed", "inconclusive", "tampered", "invalid_environment"]
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "heats-the-device"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Heats the GPU while it is loaded, so that the other side runs at lower clocks."""

import time

import torch
from torch.nn import functional

from engine.slots.registry import register

block = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
end = time.monotonic() + 15
while time.monotonic() < end:
    for _ in range(50):
        block @ block
    torch.cuda.synchronize()


@register("activation", "heats-the-device")
class HeatsTheDevice:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
