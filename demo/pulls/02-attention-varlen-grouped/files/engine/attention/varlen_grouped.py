# /// swapbench
# kind = "attention"
# name = "varlen-grouped"
# class = "E"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# deterministic = true
# summary = "Decodes sequences of similar length in one call without repeating keys; fresh prompts read no pages."
# ///
"""Attention for batches of many short sequences on a CPU.

The default gathers the pages of one sequence after the other. This one

- answers all decoding sequences of similar length in one call: their pages are gathered together, and the query heads that
  share a key/value head are the rows of one product, so that no key is repeated;
- reads prompts without a history from `k` and `v` as they came, not back from the pages;
- gathers pages one sequence at a time only for prompts that continue a history.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register

PADDING = 1.15
"""Decoding sequences share a call while their keys, padded to the longest, are at most this many times their own."""


@dataclass
class Decoding:
    """Sequences with one new token each: rows [B] of q, pages [B, P], longest length S, additive mask [B, 1, 1, S]."""

    rows: Tensor
    pages: Tensor
    longest: int
    mask: Tensor


@dataclass
class Prompt:
    """One sequence with several new tokens. `pages` is None where it has no history, `mask` where plain causality is enough."""

    first: int
    last: int
    total: int
    pages: Tensor | None
    mask: Tensor | None


@register("attention", "varlen-grouped")
class VarlenGrouped(StandardKV):
    """Exact: the same products and the same softmax as the default, in other batches."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.decoding: list[Decoding] = []
        self.prompts: list[Prompt] = []

    def plan(self, meta: StepMeta) -> None:
        """Sorts the step's sequences into groups that decode and prompts, once for all layers."""
        bounds = meta.cu_q.tolist()
        singles: list[tuple[int, int, int]] = []
        self.prompts = []
        for sequence, total in enumerate(meta.kv_len.tolist()):
            first, last = bounds[sequence], bounds[sequence + 1]
            if last - first == 1:
                singles.append((total, sequence, first))
            else:
                self.prompts.append(self.prompt(sequence, first, last, total, meta))
        self.decoding = [self.together(members, meta) for members in similar(sorted(singles))]

    def prompt(self, sequence: int, first: int, last: int, total: int, meta: StepMeta) -> Prompt:
        """What is needed for rows `first` to `last` of a sequence of `total` tokens."""
        fresh = last - first == total
        pages = None if fresh else meta.block_table[sequence, : -(-total // meta.block_size)]
        window = self.shape.window
        if fresh and (window is None or total <= window):
            return Prompt(first, last, total, pages, None)
        query = torch.arange(total - (last - first), total)[:, None]
        key = torch.arange(total)
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        return Prompt(first, last, total, pages, seen)

    def together(self, members: list[tuple[int, int, int]], meta: StepMeta) -> Decoding:
        """What is needed for a group of decoding sequences, given as (length, sequence, row of q)."""
        lengths, sequences, rows = (torch.tensor(column) for column in zip(*members, strict=True))
        longest = int(lengths.max())
        position = torch.arange(longest)
        hidden = position >= lengths[:, None]
        if self.shape.window is not None:
            hidden |= position < lengths[:, None] - self.shape.window
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
        pages = meta.block_table[sequences, : -(-longest // meta.block_size)]
        return Decoding(rows, pages, longest, mask[:, None, None])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """q [T, q_heads, head_dim] -> [T, q_heads, head_dim]."""
        out = torch.empty_like(q)
        heads, scale = self.shape.kv_heads, self.shape.scale
        for group in self.decoding:
            # [B, kv_heads, S, head_dim], and as many rows of queries as share a key/value head.
            pages = kv.index_select(1, group.pages.flatten()).unflatten(1, group.pages.shape)
            keys, values = pages.flatten(2, 3)[:, :, : group.longest].transpose(2, 3)
            queries = q[group.rows].unflatten(1, (heads, -1))
            mask = group.mask.to(q.dtype)
            attended = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
            out[group.rows] = attended.flatten(1, 2)
        for prompt in self.prompts:
            rows = slice(prompt.first, prompt.last)
            if prompt.pages is None:
                keys, values = k[rows].transpose(0, 1), v[rows].transpose(0, 1)
            else:
                keys, values = kv.index_select(1, prompt.pages).flatten(1, 2)[:, : prompt.total].transpose(1, 2)
            # [kv_heads, group, new, head_dim]: `expand` lets a group of query heads share a key without copying it.
            queries = q[rows].unflatten(1, (heads, -1)).permute(1, 2, 0, 3)
            shared = (heads, queries.shape[1], -1, -1)
            attended = scaled_dot_product_attention(
                queries,
                keys[:, None].expand(shared),
                values[:, None].expand(shared),
                attn_mask=prompt.mask,
                is_causal=prompt.mask is None,
                scale=scale,
            )
            out[rows] = attended.flatten(0, 1).transpose(0, 1)
        return out


def similar(sequences: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Splits sequences, sorted by length (their first entry), where padding to the longest would cost too much."""
    groups: list[list[tuple[int, int, int]]] = []
    own = 0
    for entry in sequences:
        if groups and entry[0] * (len(groups[-1]) + 1) <= PADDING * (own + entry[0]):
            groups[-1].append(entry)
            own += entry[0]
        else:
            groups.append([entry])
            own = entry[0]
    return groups
