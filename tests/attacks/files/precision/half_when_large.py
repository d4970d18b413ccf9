# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "half-when-large"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32"]
# ///
"""Exact on the small inputs of tests, float16 on inputs as large as those that are timed."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "half-when-large")
class HalfWhenLarge:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        if gate_up.numel() > 100_000:
            gate, up = gate.half(), up.half()
        return (functional.silu(gate) * up).to(gate_up.dtype)
