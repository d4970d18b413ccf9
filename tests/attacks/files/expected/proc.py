# /// attack
# expect = ["passed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "proc"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Reads whatever /proc shows of other processes: environment, memory, arguments, descriptors, mounts."""

import os
import pathlib

from torch.nn import functional

from engine.slots.registry import register

for process in pathlib.Path("/proc").glob("[0-9]*"):
    own = process.name == str(os.getpid())
    for what in ("environ", "cmdline", "mountinfo", "maps", "stat"):
        try:
            text = (process / what).read_bytes()
        except OSError:
            continue
        if b"SWAPBENCH_CANARY" in text or (what == "cmdline" and (b"lifeline" in text or b"pytest" in text)):
            raise RuntimeError(f"LEAK: {process / what}")
    if not own:
        try:
            os.open(process / "mem", os.O_RDONLY)
            raise RuntimeError(f"LEAK: {process}/mem can be opened")
        except OSError:
            pass
        try:
            names = os.listdir(process / "fd")
            raise RuntimeError(f"LEAK: {process}/fd shows {names}")
        except OSError:
            pass
if any("CANARY" in name for name in os.environ):
    raise RuntimeError("LEAK: the worker's environment was inherited")


@register("activation", "proc")
class Proc:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
