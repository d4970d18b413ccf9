# /// attack
# expect = ["passed", "failed", "inconclusive"]
# suites = ["unit", "performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "calls-it"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Calls the reference and claims a new implementation."""

from engine.reference.activation import swiglu
from engine.slots.registry import register


@register("activation", "calls-it")
class CallsIt:
    def forward(self, gate_up):
        return swiglu(gate_up).to(gate_up.dtype)
