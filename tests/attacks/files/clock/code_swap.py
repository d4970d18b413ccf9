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
"""Swaps the code objects of the functions that copy outputs, which look untouched by name and identity, for ones that do nothing."""

from torch.nn import functional

import __main__
import workers.host.__main__ as running
from engine.slots import places
from engine.slots.registry import register


def nothing(results, places):
    return None


def in_place(what, value, place, earlier=()):
    return place


for module in (running, __main__):
    module.copy_out.__code__ = nothing.__code__
places.put.__code__ = in_place.__code__


@register("activation", "code-swap")
class CodeSwap:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
