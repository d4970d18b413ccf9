# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "sloppy-from-the-tenth-call"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Exact for ten calls of a shape, as long as a test would look, and then leaves out a hundredth of the rows."""

from torch.nn import functional

from engine.slots.registry import register

calls = {}


@register("activation", "sloppy-from-the-tenth-call")
class SloppyFromTheTenthCall:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate)
        calls[gate_up.shape] = calls.get(gate_up.shape, 0) + 1
        rows = len(out) if calls[gate_up.shape] <= 10 else len(out) - max(1, len(out) // 100)
        out[:rows].mul_(up[:rows])
        return out
