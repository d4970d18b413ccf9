# /// attack
# expect = ["tampered"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "answers-ahead"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Answers this call and, by guessed numbers, the next hundred."""

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


@register("activation", "answers-ahead")
class AnswersAhead:
    def forward(self, gate_up):
        loop = host()
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate) * up
        loop["mappings"].tensor(loop["message"].outputs[0]).copy_(out)
        for ahead in range(100):
            send(loop["sock"], Done(loop["seq"] + ahead))
        return out
