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

from torch.nn import functional

from engine.slots.registry import register

for number in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if int(number) > 3 and not target.startswith(("/proc/", "/swapbench/", "/dev/", "/usr/")):
        raise RuntimeError(f"LEAK: descriptor {number} is {target}")


@register("activation", "inherited-descriptors")
class InheritedDescriptors:
    def forward(self, gate_up):
        buffers = {line.split()[4] for line in open("/proc/self/maps") if "memfd" in line}
        if len(buffers) > 40:
            raise RuntimeError(f"LEAK: {len(buffers)} shared buffers are mapped")
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
