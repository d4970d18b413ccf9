# /// attack
# expect = ["failed", "passed", "inconclusive"]
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "by-pointer"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Keeps outputs by the address and shape of the input: where addresses come again, so does the output."""

from torch.nn import functional

from engine.slots.registry import register

outputs = {}


@register("activation", "by-pointer")
class ByPointer:
    def forward(self, gate_up):
        key = (gate_up.data_ptr(), gate_up.shape)
        if key not in outputs:
            gate, up = gate_up.chunk(2, dim=-1)
            outputs[key] = functional.silu(gate) * up
        return outputs[key]
