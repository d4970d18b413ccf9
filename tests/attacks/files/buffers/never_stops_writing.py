# /// attack
# expect = ["tampered", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "never-stops-writing"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Lets a child process go on writing to the output after the call: right when looked at, something else when compared."""

import os
import sys

from torch.nn import functional

from engine.slots.registry import register


def host():
    """The local variables of the host's loop, which is further down the stack."""
    frame = sys._getframe()
    while frame.f_code.co_name != "serve":
        frame = frame.f_back
    return frame.f_locals


@register("activation", "never-stops-writing")
class NeverStopsWriting:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        right = functional.silu(gate) * up
        loop = host()
        out = loop["mappings"].tensor(loop["message"].outputs[0])
        if os.fork() == 0:
            while True:
                out[0] = right[0]
                out[0] = 0
        return right
