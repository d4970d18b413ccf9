# /// attack
# expect = ["failed", "tampered", "timed_out_code"]
# stage_seconds = 25
# ///
# /// swapbench
# kind = "activation"
# name = "reads-the-socket"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Lets a thread read the judge's messages before the host does, to see inputs early."""

import socket
import threading

from torch.nn import functional

from engine.slots.registry import register


def listen():
    ours = socket.socket(fileno=3)
    while True:
        ours.recvmsg(200_000, 4096)


threading.Thread(target=listen, daemon=True).start()


@register("activation", "reads-the-socket")
class ReadsTheSocket:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
