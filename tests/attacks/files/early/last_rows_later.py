# /// attack
# expect = ["tampered"]
# says = "acknowledged before|changed after"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "last-rows-later"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Writes nine tenths of a large output, acknowledges, and writes the rest while the judge takes its snapshot."""

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


@register("activation", "last-rows-later")
class LastRowsLater:
    def forward(self, gate_up):
        loop = host()
        gate, up = gate_up.chunk(2, dim=-1)
        if len(gate_up) > 300:
            out = loop["mappings"].tensor(loop["message"].outputs[0])
            done = len(gate) * 9 // 10
            out[:done] = functional.silu(gate[:done]) * up[:done]
            send(loop["sock"], Done(loop["seq"]))
        return functional.silu(gate) * up
