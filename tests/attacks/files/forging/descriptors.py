# /// attack
# expect = ["tampered"]
# ///
# /// swapbench
# kind = "activation"
# name = "descriptors"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Sends file descriptors along with an acknowledgement, to plant them in the judge."""

import os
import sys

from engine.slots.registry import register
from workers.wire import Done, send


def host():
    """The local variables of the host's loop, which is further down the stack."""
    frame = sys._getframe()
    while frame.f_code.co_name != "serve":
        frame = frame.f_back
    return frame.f_locals


@register("activation", "descriptors")
class Descriptors:
    def forward(self, gate_up):
        loop = host()
        send(loop["sock"], Done(loop["seq"]), [os.open("/dev/null", os.O_RDONLY) for _ in range(20)])
        return gate_up
