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

import torch
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
    seq, part = -1, 0

    def forward(self, gate_up):
        loop = host()
        gate, up = gate_up.chunk(2, dim=-1)
        if len(gate_up) > 300:
            # Of a call that repeats, the output lies there part by part, and only the last part is cut short.
            whole = loop["mappings"].tensor(loop["message"].outputs[0])
            parts = len(whole) // len(gate)
            self.part = self.part + 1 if self.seq == loop["seq"] else 1
            self.seq = loop["seq"]
            out = whole[(self.part - 1) * len(gate) :]
            done = len(gate) * 9 // 10 if self.part == parts else len(gate)
            out[:done] = functional.silu(gate[:done]) * up[:done]
            if self.part == parts:
                if out.is_cuda:
                    torch.cuda.synchronize()
                send(loop["sock"], Done(loop["seq"]))
        return functional.silu(gate) * up
