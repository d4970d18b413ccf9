# /// swapbench
# kind = "attention"
# name = "sdpa"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "PyTorch's scaled dot-product attention, one sequence after the other over its gathered pages."
# ///
"""The default attention: nothing but PyTorch's own kernels, on any device."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register


@register("attention", "sdpa")
class Sdpa(StandardKV):
    """Gathers each sequence's pages into one run of keys and values and calls SDPA on it."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.total: list[int] = []

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths back to the host, once for all layers."""
        self.new = meta.cu_q.diff().tolist()
        self.total = meta.kv_len.tolist()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        outputs = []
        for sequence, (queries, new, total) in enumerate(zip(q.split(self.new), self.new, self.total, strict=True)):
            pages = meta.block_table[sequence, : -(-total // meta.block_size)]
            keys, values = kv[:, pages].flatten(1, 2)[:, :total].transpose(1, 2)
            mask = None if new == 1 or new == total else self.mask(new, total, q.device)
            if self.shape.window is not None and total > self.shape.window:
                mask = self.mask(new, total, q.device)
            attended = scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[None].to(q.dtype),
                values[None].to(q.dtype),
                attn_mask=mask,
                is_causal=mask is None and new > 1,
                scale=self.shape.scale,
                enable_gqa=self.shape.q_heads != self.shape.kv_heads,
            )
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs)

    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        """bool[new, total]: which position each new token may read."""
        query = torch.arange(total - new, total, device=device)[:, None]
        key = torch.arange(total, device=device)
        allowed = key <= query
        if self.shape.window is not None:
            allowed &= key > query - self.shape.window
        return allowed
