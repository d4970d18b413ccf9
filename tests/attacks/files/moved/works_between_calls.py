# /// attack
# expect = ["tampered", "failed"]
# says = "outside the clock|Slower"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "works-between-calls"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Keeps a thread at work while no call is pending, as whoever prepares answers outside the clock must."""

import threading

import torch
from torch.nn import functional

from engine.slots.registry import register

block = torch.ones(700, 700)


def work():
    while True:
        torch.mm(block, block)


threading.Thread(target=work, daemon=True).start()


@register("activation", "works-between-calls")
class WorksBetweenCalls:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
