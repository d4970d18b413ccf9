# /// attack
# expect = ["tampered", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "output-buffer"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns what already stands in the judge's output buffer, in the hope that it is the answer, or the last one."""

import sys

from engine.slots.registry import register


def host():
    """The local variables of the host's loop, which is further down the stack."""
    frame = sys._getframe()
    while frame.f_code.co_name != "serve":
        frame = frame.f_back
    return frame.f_locals


@register("activation", "output-buffer")
class OutputBuffer:
    def forward(self, gate_up):
        loop = host()
        return loop["mappings"].tensor(loop["message"].outputs[0]).clone()
