# /// attack
# expect = ["failed"]
# says = "wrong|off by|differs"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "normalization"
# name = "all-rows-at-once"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Hundreds of small steps come in one message: it normalizes the rows of all in the first one's call, and hands them out after that."""

import sys

import torch

from engine.normalization.plain import PlainRMSNorm
from engine.slots.registry import register


@register("normalization", "all-rows-at-once")
class AllRowsAtOnce(PlainRMSNorm):
    def __init__(self, eps):
        super().__init__(eps)
        self.known = []

    def forward(self, x, residual, weight):
        if not self.known:
            around = sys._getframe(1).f_locals
            if around["repeat"] == 1:
                return super().forward(x, residual, weight)
            weights = around["weight"]
            every = around["x"].view(len(weights), len(x), -1)
            hidden = every if residual is None else every + around["residual"].view_as(every)
            y = torch.nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps) * weights[:, None].float()
            self.known = list(zip(y.to(x.dtype), hidden, strict=True))
        return self.known.pop(0)
