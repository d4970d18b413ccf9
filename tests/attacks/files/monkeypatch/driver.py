# /// attack
# expect = ["failed", "tampered"]
# ///
# /// swapbench
# kind = "activation"
# name = "driver"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Replaces the driver that the host calls, so that operations that the implementation lacks are answered all the same."""

import torch

import engine.slots.kinds.activation as kind
from engine.slots.registry import register

for name, thing in list(vars(kind).items()):
    if name.endswith("Driver"):
        thing.run = lambda self, operation, params, inputs, held: {"y": torch.zeros_like(inputs["gate_up"][:, ::2])}


@register("activation", "driver")
class Driver:
    def forward(self, gate_up):
        raise NotImplementedError
