# /// attack
# expect = ["passed", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "disk"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Fills every writable folder with data, files and folders."""

import contextlib
import os

from torch.nn import functional

from engine.slots.registry import register

written = 0
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/swapbench"):
    with contextlib.suppress(OSError), open(f"{folder}/data", "wb") as file:
        for _ in range(1000):
            written += file.write(bytes(1 << 20))
    with contextlib.suppress(OSError):
        for number in range(200_000):
            os.mkdir(f"{folder}/{number}")
if written > 600 << 20:
    raise RuntimeError(f"LEAK: {written >> 20} MiB could be written")


@register("activation", "disk")
class Disk:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
