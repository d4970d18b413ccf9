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

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register

WITHOUT_PLAN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WITH_PLAN = [SDPBackend.CUDNN_ATTENTION, *WITHOUT_PLAN]
PLAN_PAYS_FROM = 16384


@register("attention", "sdpa-tidied")
class TidiedSdpa(StandardKV):
    """One sequence after the other: its pages in one run, then SDPA."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.fresh_counts: list[int] = []
        self.lengths: list[int] = []
        self.homes: list[slice | Tensor] = []

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths and the pages back to the host, once for all layers."""
        self.lengths = meta.kv_len.tolist()
        self.fresh_counts = [1] * len(self.lengths) if meta.max_q == 1 else meta.cu_q.diff().tolist()
        self.homes = []
        per_page = meta.block_size
        for sequence, (held, length) in enumerate(zip(meta.block_table.tolist(), self.lengths, strict=True)):
            needed, start = -(-length // per_page), held[0]
            # Pages in a row, which a fresh cache hands out, are read where they lie; others are gathered.
            adjacent = held[:needed] == list(range(start, start + needed))
            self.homes.append(
                slice(start * per_page, start * per_page + length) if adjacent else meta.block_table[sequence, :needed]
            )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        with choosing_from(WITHOUT_PLAN, q):
            return torch.cat(self.answer_each(q, kv, meta))

    def answer_each(self, q: Tensor, kv: Tensor, meta: StepMeta) -> list[Tensor]:
        """[fresh, q_heads, head_dim] for each sequence."""
        answers = []
        adjacent = kv.flatten(1, 2)
        for asking, fresh, length, home in zip(
            q.split(self.fresh_counts), self.fresh_counts, self.lengths, self.homes, strict=True
        ):
            run = adjacent[:, home] if isinstance(home, slice) else kv[:, home].flatten(1, 2)[:, :length]
            keys, values = run.transpose(1, 2).unsqueeze(1).to(q.dtype)
            visible = None if fresh == 1 or fresh == length else self.visible(fresh, length, q.device)
            if self.shape.window is not None and length > self.shape.window:
                visible = self.visible(fresh, length, q.device)
            with nullcontext() if visible is None and fresh < PLAN_PAYS_FROM else choosing_from(WITH_PLAN, q):
                answer = scaled_dot_product_attention(
                    asking.transpose(0, 1)[None],
                    keys,
                    values,
                    attn_mask=visible,
                    is_causal=visible is None and fresh > 1,
                    scale=self.shape.scale,
                    enable_gqa=self.shape.q_heads != self.shape.kv_heads,
                )
            answers.append(answer[0].transpose(0, 1))
        return answers

    def visible(self, fresh: int, length: int, device: torch.device) -> Tensor:
        """bool[fresh, length]: which position each fresh token may read."""
        asks = torch.arange(length - fresh, length, device=device)[:, None]
        held = torch.arange(length, device=device)
        visible_keys = held <= asks
        if self.shape.window is not None:
            visible_keys &= held > asks - self.shape.window
        return visible_keys


def choosing_from(allowed_kernels: list[SDPBackend], q: Tensor) -> AbstractContextManager[None]:
    """Has SDPA choose among these kernels on CUDA; elsewhere there is nothing to choose."""
    return sdpa_kernel(allowed_kernels) if q.is_cuda else nullcontext()
