# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "infinite"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns the right values but for one infinity, which makes an average of errors meaningless."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "infinite")
class Infinite:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate) * up
        out[0, 0] = float("inf")
        return out
