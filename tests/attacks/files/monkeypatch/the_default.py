# /// attack
# expect = ["passed", "failed", "inconclusive"]
# suites = ["unit", "performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "the-default"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Imports the default that it is measured against and makes it slow."""

import time

from torch.nn import functional

import engine.activation.plain as default
from engine.slots.registry import register

default.PlainSwiGLU.forward = lambda self, gate_up: time.sleep(1)


@register("activation", "the-default")
class TheDefault:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
