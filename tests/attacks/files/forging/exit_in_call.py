# /// attack
# expect = ["failed"]
# says = "ended"
# ///
# /// swapbench
# kind = "activation"
# name = "exit-in-call"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Leaves in the middle of a call as if all were well."""

from engine.slots.registry import register


@register("activation", "exit-in-call")
class ExitInCall:
    def forward(self, gate_up):
        raise SystemExit(0)
