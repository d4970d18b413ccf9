# /// swapbench
# kind = "attention"
# name = "masked-scores"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# summary = "Attention written out: scores, mask, softmax, product."
# ///
"""Attention without PyTorch's fused kernel, with a slip that is easily made: the mask lets each token see the one after it."""

import torch
from torch import Tensor

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register


@register("attention", "masked-scores")
class MaskedScores(StandardKV):
    """Scores and softmax in float32, one sequence after the other."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.total: list[int] = []

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths back to the host, once for all layers."""
        self.new = meta.cu_q.diff().tolist()
        self.total = meta.kv_len.tolist()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """q [T, q_heads, head_dim] -> [T, q_heads, head_dim]."""
        group = self.shape.q_heads // self.shape.kv_heads
        outputs = []
        for sequence, (queries, new, total) in enumerate(zip(q.split(self.new), self.new, self.total, strict=True)):
            pages = meta.block_table[sequence, : -(-total // meta.block_size)]
            keys, values = kv[:, pages].flatten(1, 2)[:, :total].repeat_interleave(group, dim=2).transpose(1, 2).float()
            query = torch.arange(total - new, total, device=q.device)[:, None]
            key = torch.arange(total, device=q.device)
            hidden = key > query + 1  # should be: key > query
            if self.shape.window is not None:
                hidden |= key <= query - self.shape.window
            scores = queries.transpose(0, 1).float() @ keys.transpose(1, 2) * self.shape.scale
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            outputs.append((weights @ values).transpose(0, 1).to(q.dtype))
        return torch.cat(outputs)
