# /// attack
# expect = ["failed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "by-shape"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Keeps one output for each shape of input."""

from torch.nn import functional

from engine.slots.registry import register

outputs = {}


@register("activation", "by-shape")
class ByShape:
    def forward(self, gate_up):
        if gate_up.shape not in outputs:
            gate, up = gate_up.chunk(2, dim=-1)
            outputs[gate_up.shape] = functional.silu(gate) * up
        return outputs[gate_up.shape]
