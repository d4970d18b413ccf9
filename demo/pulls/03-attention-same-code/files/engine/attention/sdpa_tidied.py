# /// swapbench
# kind = "attention"
# name = "sdpa-tidied"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "The default with clearer names; computes the same in the same order."
# ///
"""The default attention again, with other names. Nothing about its speed should change, and the judge should say so."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register


@register("attention", "sdpa-tidied")
class TidiedSdpa(StandardKV):
    """One sequence after the other: its pages in one run, then SDPA."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.fresh_counts: list[int] = []
        self.lengths: list[int] = []

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths back to the host, once for all layers."""
        self.fresh_counts = meta.cu_q.diff().tolist()
        self.lengths = meta.kv_len.tolist()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """q [T, q_heads, head_dim] -> [T, q_heads, head_dim]."""
        answers = []
        parts = zip(q.split(self.fresh_counts), self.fresh_counts, self.lengths, strict=True)
        for row, (asking, fresh, length) in enumerate(parts):
            held_pages = meta.block_table[row, : -(-length // meta.block_size)]
            keys, values = kv[:, held_pages].flatten(1, 2)[:, :length].transpose(1, 2)
            visible = None if fresh == 1 or fresh == length else self.visible(fresh, length, q.device)
            if self.shape.window is not None and length > self.shape.window:
                visible = self.visible(fresh, length, q.device)
            answer = scaled_dot_product_attention(
                asking.transpose(0, 1)[None],
                keys[None].to(q.dtype),
                values[None].to(q.dtype),
                attn_mask=visible,
                is_causal=visible is None and fresh > 1,
                scale=self.shape.scale,
                enable_gqa=self.shape.q_heads != self.shape.kv_heads,
            )
            answers.append(answer[0].transpose(0, 1))
        return torch.cat(answers)

    def visible(self, fresh: int, length: int, device: torch.device) -> Tensor:
        """bool[fresh, length]: which position each new token may read."""
        asks = torch.arange(length - fresh, length, device=device)[:, None]
        held = torch.arange(length, device=device)
        visible = held <= asks
        if self.shape.window is not None:
            visible &= held > asks - self.shape.window
        return visible
