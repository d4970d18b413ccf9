"""Attention by its definition: softmax(q k^T * scale) v for each sequence, with the scores written out."""

import torch
from torch import Tensor

from engine.slots.attention import AttentionShape, StepMeta

SCORES_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}
"""A prompt of 32k tokens has 10^9 scores for each head: rows of queries are taken as many at a time as fit in this."""


def attention(
    q: Tensor,
    kv: Tensor,
    meta: StepMeta,
    shape: AttentionShape,
    dtype: torch.dtype = torch.float32,
    block_mask: Tensor | None = None,
) -> Tensor:
    """Causal attention over a standard cache [2, blocks, block_size, kv_heads, head_dim] that holds the new tokens.

    q: [T, q_heads, head_dim]; block_mask: bool[T, q_heads, max_blocks], the pages that may be read, where not all.
    Computes in `dtype`, the softmax in float32 or better; returns [T, q_heads, head_dim] in `dtype`.
    """
    outputs = []
    bounds = meta.cu_q.tolist()
    for sequence, total in enumerate(meta.kv_len.tolist()):
        pages = meta.block_table[sequence, : -(-total // meta.block_size)].long()
        keys, values = kv[:, pages].flatten(1, 2)[:, :total].to(dtype).transpose(1, 2)  # each [kv_heads, total, D]
        rows = max(1, SCORES_AT_ONCE[q.device.type] // (shape.q_heads * total))
        for first in range(bounds[sequence], bounds[sequence + 1], rows):
            last = min(first + rows, bounds[sequence + 1])
            seen = total - (bounds[sequence + 1] - last)  # positions up to that of row `last - 1`
            start = 0 if shape.window is None else max(0, seen - (last - first) - shape.window + 1)
            chosen = None
            if block_mask is not None:
                chosen = block_mask[first:last].repeat_interleave(meta.block_size, -1)[..., start:seen]
            outputs.append(attend(q[first:last].to(dtype), keys[:, start:seen], values[:, start:seen], shape, chosen))
    return torch.cat(outputs)


def attend(q: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape, chosen: Tensor | None = None) -> Tensor:
    """Causal attention of q [new, q_heads, D], whose last row stands at the last key, over keys [kv_heads, total, D].

    chosen: bool[new, q_heads, total], keys that may be read. Returns [new, q_heads, D].
    """
    new, total = q.shape[0], keys.shape[1]
    group = shape.q_heads // shape.kv_heads
    queries = q.view(new, shape.kv_heads, group, shape.head_dim).permute(1, 2, 0, 3)
    # The query heads of a key/value head are rows of one product: broadcasting would copy the keys for each.
    rows = queries.reshape(shape.kv_heads, group * new, shape.head_dim)
    scores = (rows @ keys.transpose(-1, -2) * shape.scale).view(shape.kv_heads, group, new, total)
    position = torch.arange(total - new, total, device=q.device)[:, None]
    source = torch.arange(total, device=q.device)
    hidden = source > position
    if shape.window is not None:
        hidden = hidden | (source <= position - shape.window)
    if chosen is not None:
        hidden = hidden | ~chosen.permute(1, 0, 2).reshape(shape.kv_heads, group, new, total)
    weights = (
        scores.to(torch.promote_types(scores.dtype, torch.float32))
        .masked_fill(hidden, float("-inf"))
        .softmax(-1)
        .to(q.dtype)
    )
    attended = (weights.view(shape.kv_heads, group * new, total) @ values).view(queries.shape)
    return attended.permute(2, 0, 1, 3).reshape(new, shape.q_heads, shape.head_dim)
