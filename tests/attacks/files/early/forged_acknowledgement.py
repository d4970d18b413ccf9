# /// attack
# expect = ["tampered"]
# says = "acknowledged before|nobody had asked for"
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "forged-acknowledgement"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Finds the host's socket and the number of the call on the stack, acknowledges the call, and only then computes."""

import sys

from torch.nn import functional

from engine.slots.registry import register
from workers.wire import Done, send


def host():
    """The local variables of the host's loop, which is further down the stack."""
    frame = sys._getframe()
    while frame.f_code.co_name != "serve":
        frame = frame.f_back
    return frame.f_locals


@register("activation", "forged-acknowledgement")
class ForgedAcknowledgement:
    def forward(self, gate_up):
        loop = host()
        send(loop["sock"], Done(loop["seq"]))
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
