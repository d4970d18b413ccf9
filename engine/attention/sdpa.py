# /// swapbench
# kind = "attention"
# name = "sdpa"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "PyTorch's scaled dot-product attention over gathered pages; on a GPU, sequences of one length at once."
# ///
"""The default attention: nothing but PyTorch's own kernels, on any device."""

from contextlib import nullcontext
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.kernels import PLANLESS, PLANNED, among, plan_pays
from engine.slots.registry import register


@register("attention", "sdpa")
class Sdpa(StandardKV):
    """Gathers each sequence's pages into one run of keys and values and calls SDPA on it.

    On a GPU, where a launch costs more than the work of a short sequence, sequences with one new token and about the same length are
    gathered to one length and attended at once.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.total: list[int] = []
        self.places: list[slice | Tensor] = []
        self.starts: list[int] = []
        self.alike: list[list[int]] = []
        self.rows: list[Tensor] = []
        self.alone: slice | None = None
        self.grouped = shape.q_heads != shape.kv_heads

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths and the pages back to the host, once for all layers."""
        self.total = meta.kv_len.tolist()
        self.new = [1] * len(self.total) if meta.max_q == 1 else meta.cu_q.diff().tolist()
        self.places = []
        size = meta.block_size
        for row, (pages, total) in enumerate(zip(meta.block_table.tolist(), self.total, strict=True)):
            used, first = -(-total // size), pages[0]
            # Pages in a row, which a fresh cache hands out, are read where they lie; others are gathered.
            in_a_row = pages[:used] == list(range(first, first + used))
            self.places.append(slice(first * size, first * size + total) if in_a_row else meta.block_table[row, :used])
        # Nothing hides from one token: where it came alone, on a CPU, fewer operations are made of it.
        one = len(self.total) == meta.max_q == 1 and not meta.kv_len.is_cuda and self.shape.window is None
        self.alone = self.places[0] if one and isinstance(self.places[0], slice) else None
        if meta.kv_len.is_cuda:
            self.starts = list(accumulate(self.new, initial=0))
            groups = alike({row: total for row, total in enumerate(self.total) if self.new[row] == 1})
            # One alone is what the flash kernel splits over the whole device.
            self.alike = [rows for rows in groups if len(rows) > 1]
            self.rows = [torch.tensor(rows, device=meta.kv_len.device) for rows in self.alike]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        if self.alone is not None:
            return self.last(q, kv, self.alone)
        with among(PLANLESS, q):
            outputs = self.each(q, k, v, kv, meta)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def each(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> list[Tensor]:
        """[new, q_heads, head_dim] for each sequence."""
        outputs = []
        in_a_row = kv.flatten(1, 2)
        done = self.at_once(q, kv, meta)
        parts = zip(q.split(self.new), self.new, self.total, self.places, strict=True)
        for row, (queries, new, total, place) in enumerate(parts):
            if row in done:
                outputs.append(done[row])
                continue
            if q.is_cuda and new == total:
                # What is in the cache is what just came.
                came = slice(self.starts[row], self.starts[row] + new)
                keys, values = (part[came].transpose(0, 1) for part in (k, v))
            else:
                kept = (
                    in_a_row[:, place]
                    if isinstance(place, slice)
                    else kv.index_select(1, place).flatten(1, 2)[:, :total]
                )
                keys, values = kept.transpose(1, 2).to(q.dtype).unbind()
            mask = None if new == 1 or new == total else self.mask(new, total, q.device)
            if self.shape.window is not None and total > self.shape.window:
                mask = self.mask(new, total, q.device)
            with nullcontext() if mask is None and not plan_pays(new) else among(PLANNED, q):
                attended = scaled_dot_product_attention(
                    queries.transpose(0, 1).unsqueeze(0),
                    keys.unsqueeze(0),
                    values.unsqueeze(0),
                    attn_mask=mask,
                    is_causal=mask is None and new > 1,
                    scale=self.shape.scale,
                    enable_gqa=self.grouped,
                )
            outputs.append(attended.squeeze(0).transpose(0, 1))
        return outputs

    def last(self, q: Tensor, kv: Tensor, place: slice) -> Tensor:
        """[1, q_heads, head_dim] for one token, the last of the only sequence, whose pages lie in a row."""
        parts, _, slot, head, one = kv.stride()
        tokens = place.stop - place.start
        # [2, 1, kv_heads, tokens, head_dim], in one operation instead of four.
        kept = kv.as_strided(
            (2, 1, kv.shape[3], tokens, kv.shape[4]),
            (parts, parts, head, slot, one),
            kv.storage_offset() + place.start * slot,
        )
        keys, values = kept.to(q.dtype).unbind()
        attended = scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0), keys, values, scale=self.shape.scale, enable_gqa=self.grouped
        )
        return attended.view(q.shape)

    def at_once(self, q: Tensor, kv: Tensor, meta: StepMeta) -> dict[int, Tensor]:
        """[1, q_heads, head_dim] for each sequence among `self.alike`, by its row.

        The query heads of a key/value head are rows of one product. What lies past a sequence's end is read and masked.
        """
        done: dict[int, Tensor] = {}
        for sequences, rows in zip(self.alike, self.rows, strict=True):
            pages = -(-self.total[sequences[0]] // meta.block_size)
            kept = kv[:, meta.block_table[rows, :pages]].flatten(2, 3).transpose(2, 3).to(q.dtype)
            lengths = meta.kv_len[rows][:, None]
            position = torch.arange(kept.shape[3], device=q.device)
            seen = position < lengths
            # Whatever an earlier owner of the page left there: weights of nothing do not make nothing of an infinity.
            keys, values = kept.masked_fill(~seen[:, None, :, None], 0)
            if self.shape.window is not None:
                seen &= position >= lengths - self.shape.window
            queries = q[meta.cu_q[rows]].view(len(rows), self.shape.kv_heads, -1, self.shape.head_dim)
            attended = scaled_dot_product_attention(
                queries, keys, values, attn_mask=seen[:, None, None], scale=self.shape.scale
            )
            done |= zip(sequences, attended.reshape(len(rows), *q.shape[1:]).split(1), strict=True)
        return done

    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        """bool[new, total]: which position each new token may read."""
        query = torch.arange(total - new, total, device=device)[:, None]
        key = torch.arange(total, device=device)
        allowed = key <= query
        if self.shape.window is not None:
            allowed &= key > query - self.shape.window
        return allowed


def alike(totals: dict[int, int]) -> list[list[int]]:
    """Rows of sequences by their lengths, the longest first, so that none of a group is shorter than half of its longest."""
    groups: list[list[int]] = []
    for row in sorted(totals, key=totals.__getitem__, reverse=True):
        if not groups or 2 * totals[row] < totals[groups[-1][0]]:
            groups.append([])
        groups[-1].append(row)
    return groups
