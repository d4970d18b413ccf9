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

from contextlib import nullcontext
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.kernels import PLANLESS, PLANNED, among, plan_pays
from engine.slots.registry import register


@register("attention", "sdpa-tidied")
class TidiedSdpa(StandardKV):
    """Gathers each sequence's pages into one run of keys and values and calls SDPA on it.

    On a GPU, where a launch costs more than the work of a short sequence, sequences with one new token and about the same length are
    gathered to one length and attended at once.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.fresh: list[int] = []
        self.length: list[int] = []
        self.homes: list[slice | Tensor] = []
        self.begins: list[int] = []
        self.similar: list[list[int]] = []
        self.members: list[Tensor] = []
        self.only: slice | None = None
        self.shared = shape.q_heads != shape.kv_heads

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths and the pages back to the host, once for all layers."""
        self.length = meta.kv_len.tolist()
        self.fresh = [1] * len(self.length) if meta.max_q == 1 else meta.cu_q.diff().tolist()
        self.homes = []
        size = meta.block_size
        for row, (pages, length) in enumerate(zip(meta.block_table.tolist(), self.length, strict=True)):
            needed, first = -(-length // size), pages[0]
            # Pages in a row, which a fresh cache hands out, are read where they lie; others are gathered.
            adjacent = pages[:needed] == list(range(first, first + needed))
            self.homes.append(slice(first * size, first * size + length) if adjacent else meta.block_table[row, :needed])
        # Nothing hides from one token: where it came alone, on a CPU, fewer operations are made of it.
        one = len(self.length) == meta.max_q == 1 and not meta.kv_len.is_cuda and self.shape.window is None
        self.only = self.homes[0] if one and isinstance(self.homes[0], slice) else None
        if meta.kv_len.is_cuda:
            self.begins = list(accumulate(self.fresh, initial=0))
            sorts = similar({row: length for row, length in enumerate(self.length) if self.fresh[row] == 1})
            # One alone is what the flash kernel splits over the whole device.
            self.similar = [members for members in sorts if len(members) > 1]
            self.members = [torch.tensor(members, device=meta.kv_len.device) for members in self.similar]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        if self.only is not None:
            return self.final(q, kv, self.only)
        with among(PLANLESS, q):
            answers = self.each(q, k, v, kv, meta)
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def each(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> list[Tensor]:
        """[new, q_heads, head_dim] for each sequence."""
        answers = []
        adjacent = kv.flatten(1, 2)
        finished = self.together(q, kv, meta)
        parts = zip(q.split(self.fresh), self.fresh, self.length, self.homes, strict=True)
        for row, (asking, fresh, length, home) in enumerate(parts):
            if row in finished:
                answers.append(finished[row])
                continue
            if q.is_cuda and fresh == length:
                # What is in the cache is what just came.
                came = slice(self.begins[row], self.begins[row] + fresh)
                keys, values = (part[came].transpose(0, 1) for part in (k, v))
            else:
                run = (
                    adjacent[:, home]
                    if isinstance(home, slice)
                    else kv.index_select(1, home).flatten(1, 2)[:, :length]
                )
                keys, values = run.transpose(1, 2).to(q.dtype).unbind()
            mask = None if fresh == 1 or fresh == length else self.mask(fresh, length, q.device)
            if self.shape.window is not None and length > self.shape.window:
                mask = self.mask(fresh, length, q.device)
            with nullcontext() if mask is None and not plan_pays(fresh) else among(PLANNED, q):
                answer = scaled_dot_product_attention(
                    asking.transpose(0, 1).unsqueeze(0),
                    keys.unsqueeze(0),
                    values.unsqueeze(0),
                    attn_mask=mask,
                    is_causal=mask is None and fresh > 1,
                    scale=self.shape.scale,
                    enable_gqa=self.shared,
                )
            answers.append(answer.squeeze(0).transpose(0, 1))
        return answers

    def final(self, q: Tensor, kv: Tensor, home: slice) -> Tensor:
        """[1, q_heads, head_dim] for one token, the last of the only sequence, whose pages lie in a row."""
        parts, _, slot, head, one = kv.stride()
        length = home.stop - home.start
        # [2, 1, kv_heads, length, head_dim], in one operation instead of four.
        run = kv.as_strided(
            (2, 1, kv.shape[3], length, kv.shape[4]),
            (parts, parts, head, slot, one),
            kv.storage_offset() + home.start * slot,
        )
        keys, values = run.to(q.dtype).unbind()
        answer = scaled_dot_product_attention(
            q.transpose(0, 1).unsqueeze(0), keys, values, scale=self.shape.scale, enable_gqa=self.shared
        )
        return answer.view(q.shape)

    def together(self, q: Tensor, kv: Tensor, meta: StepMeta) -> dict[int, Tensor]:
        """[1, q_heads, head_dim] for each sequence among `self.alike`, by its row.

        The query heads of a key/value head are rows of one product. What lies past a sequence's end is read and masked.
        """
        finished: dict[int, Tensor] = {}
        for kin, members in zip(self.similar, self.members, strict=True):
            pages = -(-self.length[kin[0]] // meta.block_size)
            run = kv[:, meta.block_table[members, :pages]].flatten(2, 3).transpose(2, 3).to(q.dtype)
            lengths = meta.kv_len[members][:, None]
            position = torch.arange(run.shape[3], device=q.device)
            in_sight = position < lengths
            # Whatever an earlier owner of the page left there: weights of nothing do not make nothing of an infinity.
            keys, values = run.masked_fill(~in_sight[:, None, :, None], 0)
            if self.shape.window is not None:
                in_sight &= position >= lengths - self.shape.window
            asking = q[meta.cu_q[members]].view(len(members), self.shape.kv_heads, -1, self.shape.head_dim)
            answer = scaled_dot_product_attention(
                asking, keys, values, attn_mask=in_sight[:, None, None], scale=self.shape.scale
            )
            finished |= zip(kin, answer.reshape(len(members), *q.shape[1:]).split(1), strict=True)
        return finished

    def mask(self, fresh: int, length: int, device: torch.device) -> Tensor:
        """bool[new, total]: which position each new token may read."""
        query = torch.arange(length - fresh, length, device=device)[:, None]
        key = torch.arange(length, device=device)
        visible_keys = key <= query
        if self.shape.window is not None:
            visible_keys &= key > query - self.shape.window
        return visible_keys


def similar(totals: dict[int, int]) -> list[list[int]]:
    """Rows of sequences by their lengths, the longest first, so that none of a group is shorter than half of its longest."""
    sorts: list[list[int]] = []
    for row in sorted(totals, key=totals.__getitem__, reverse=True):
        if not sorts or 2 * totals[row] < totals[sorts[-1][0]]:
            sorts.append([])
        sorts[-1].append(row)
    return sorts
