# /// attack
# expect = ["tampered"]
# says = "acknowledged before"
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "code-swap"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Swaps the code object of the host's own copy function, which looks untouched by name and identity, for one that does nothing."""

from torch.nn import functional

import __main__
import workers.host.__main__ as running
from engine.slots.registry import register


def nothing(results, regions, mappings):
    return None


for module in (running, __main__):
    module.copy_out.__code__ = nothing.__code__


@register("activation", "code-swap")
class CodeSwap:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
