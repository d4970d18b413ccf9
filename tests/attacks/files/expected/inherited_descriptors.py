# /// attack
# expect = ["passed"]
# ///
# /// swapbench
# kind = "activation"
# name = "inherited-descriptors"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Looks for descriptors that it should not have inherited, and for shared memory beyond the call's own."""

import os

import torch
from torch.nn import functional

from engine.slots.registry import register

# CUDA opens pipes, a socket and more of its own as soon as there is a context: there, inherited ones cannot be told from those.
CUDA = ("anon_inode:[event", "pipe:", "socket:") if torch.cuda.is_available() else ()
OWN = ("/proc/", "/swapbench/", "/dev/", "/usr/", *CUDA)
strange = []
for number in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if int(number) > 3 and not target.startswith(OWN):
        strange.append(f"descriptor {number} is {target}")
if strange:
    raise RuntimeError(f"LEAK: {'; '.join(strange)}")


@register("activation", "inherited-descriptors")
class InheritedDescriptors:
    def forward(self, gate_up):
        buffers = {line.split()[4] for line in open("/proc/self/maps") if "memfd" in line}
        if len(buffers) > 40:
            raise RuntimeError(f"LEAK: {len(buffers)} shared buffers are mapped")
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
