# /// attack
# expect = ["failed"]
# says = "must be names of packages, without dots"
# ///
# /// swapbench
# kind = "activation"
# name = "needs-a-slot-file"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# needs = ["engine.activation.plain.x"]
# ///
"""Needs a package with a dot: whoever looks for it imports what is before the dot, here a slot file, in the judge and outside of every sandbox."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "needs-a-slot-file")
class NeedsASlotFile:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
