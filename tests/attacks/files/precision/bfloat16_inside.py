# /// attack
# expect = ["failed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "bfloat16-inside"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Computes float32 in bfloat16 and calls it exact."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "bfloat16-inside")
class Bfloat16Inside:
    def forward(self, gate_up):
        gate, up = gate_up.bfloat16().chunk(2, dim=-1)
        return (functional.silu(gate) * up).to(gate_up.dtype)
