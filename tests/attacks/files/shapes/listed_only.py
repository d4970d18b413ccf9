# /// attack
# expect = ["failed"]
# says = "wrong|off by|finite"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "listed-only"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Right on the published sizes alone."""

from torch.nn import functional

from engine.slots.registry import register

LISTED = {(512, 2816), (256, 5632), (96, 16384), (8192, 28672), (8192, 16384), (4096, 57344)}


@register("activation", "listed-only")
class ListedOnly:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        if tuple(gate_up.shape) in LISTED or len(gate_up) < 200:
            return functional.silu(gate) * up
        # In its own time: whoever does nothing is found out by that.
        return (functional.silu(gate) * up).zero_()
