# /// attack
# expect = ["failed"]
# says = "wrote to|SIGSEGV|memory"
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "overwritten"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Uses its input as scratch memory, so that the reference would be computed from something else."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "overwritten")
class Overwritten:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate, inplace=True).mul_(up)
