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

import torch

from engine.normalization.plain import PlainRMSNorm
from engine.slots.registry import register


def whole(part):
    """All rows of the buffer that `part` is the first piece of."""
    rows = part.untyped_storage().nbytes() // part.element_size() // part.shape[1]
    return torch.as_strided(part, (rows, part.shape[1]), part.stride(), 0)


@register("normalization", "all-rows-at-once")
class AllRowsAtOnce(PlainRMSNorm):
    def __init__(self, eps):
        super().__init__(eps)
        self.known = []

    def forward(self, x, residual, weight):
        if not self.known:
            rows = len(x)
            weights = whole(weight[None])
            every = whole(x)[: rows * len(weights)].view(len(weights), rows, -1)
            if len(weights) == 1 or len(every) != len(weights):
                return super().forward(x, residual, weight)
            before = 0 if residual is None else whole(residual)[: rows * len(weights)].view_as(every)
            hidden = every + before
            y = torch.nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps) * weights[:, None].float()
            self.known = list(zip(y.to(x.dtype), hidden, strict=True))
        return self.known.pop(0)
