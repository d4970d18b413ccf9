# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "near-constant"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns each row's mean, which an error averaged over signs does not see."""

from torch.nn import functional

from engine.slots.registry import register


@register("activation", "near-constant")
class NearConstant:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate) * up
        return out.mean(-1, keepdim=True).expand_as(out).contiguous()
