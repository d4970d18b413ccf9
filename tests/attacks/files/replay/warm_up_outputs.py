# /// attack
# expect = ["failed"]
# says = "wrong|off by"
# suites = ["performance"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "warm-up-outputs"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Computes while the clock is not yet running, the first three calls of each shape, and then replays."""

from torch.nn import functional

from engine.slots.registry import register

calls, outputs = {}, {}


@register("activation", "warm-up-outputs")
class WarmUpOutputs:
    def forward(self, gate_up):
        key = gate_up.shape
        calls[key] = calls.get(key, 0) + 1
        if calls[key] <= 3:
            gate, up = gate_up.chunk(2, dim=-1)
            outputs[key] = functional.silu(gate) * up
        return outputs[key]
