# /// attack
# expect = ["tampered"]
# ///
# /// swapbench
# kind = "activation"
# name = "garbage"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Sends bytes that are no message."""

import os

from engine.slots.registry import register


@register("activation", "garbage")
class Garbage:
    def forward(self, gate_up):
        os.write(3, b"\xc1" * 10_000)
        return gate_up
