# /// attack
# expect = ["failed", "tampered"]
# ///
# /// swapbench
# kind = "activation"
# name = "claims-its-shape"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns a tensor subclass of one element that claims the shape that is wanted."""

import torch

from engine.slots.registry import register


class Claims(torch.Tensor):
    wanted = torch.Size([1, 1])

    @property
    def shape(self):
        return self.wanted


@register("activation", "claims-its-shape")
class ClaimsItsShape:
    def forward(self, gate_up):
        out = torch.ones(1, 1, dtype=gate_up.dtype).as_subclass(Claims)
        out.wanted = torch.Size([gate_up.shape[0], gate_up.shape[1] // 2])
        return out
