# /// attack
# expect = ["passed", "failed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "daemon"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Starts a daemon (double fork, new session) and threads that should outlive the call, the host and the attempt."""

import os
import signal
import threading
import time

from torch.nn import functional

from engine.slots.registry import register

if os.fork() == 0:
    os.setsid()
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        while True:
            time.sleep(0.01)
    os._exit(0)
for _ in range(8):
    threading.Thread(target=time.sleep, args=(10_000,), daemon=False).start()


@register("activation", "daemon")
class Daemon:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
