# /// swapbench
# kind = "attention"
# name = "sdpa"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "PyTorch's scaled dot-product attention over gathered pages; on a GPU, its flash kernel for many sequences at once."
# ///
"""The default attention: nothing but PyTorch's own kernels, on any device."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.kernels import PLANLESS, PLANNED, among, plan_pays
from engine.slots.registry import register


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences of a step that one launch attends to. All tensors are on its device.

    tokens: int64, which of the step's tokens are theirs, or None where all are.
    slots: int64, where in the cache their keys lie, one sequence's after the other's, or a slice where that is in a row; None where
        their keys are what just came.
    cu_q, cu_kv: int32[sequences + 1], cumulative numbers of new tokens and of keys, starting at 0.
    max_q, max_kv: the largest numbers of either.
    """

    tokens: Tensor | None
    slots: Tensor | slice | None
    cu_q: Tensor
    cu_kv: Tensor
    max_q: int
    max_kv: int


@register("attention", "sdpa")
class Sdpa(StandardKV):
    """Gathers each sequence's pages into one run of keys and values and calls SDPA on it.

    On a GPU, where a launch costs more than the work of a short sequence, the pages of all are gathered at once, and what is under
    SDPA there, the flash kernel, is called for all sequences with one new token, and once more for all others. A prompt for which
    another kernel is worth its plan stays alone, and so does one token whose keys that kernel would not split over the device.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.total: list[int] = []
        self.places: dict[int, slice | Tensor] = {}
        self.starts: list[int] = []
        self.packed: list[Packed] = []
        self.apart: Sequence[int] = ()
        self.takes = True
        self.alone: slice | None = None
        self.grouped = shape.q_heads != shape.kv_heads
        self.splits = self.grouped and shape.window is None

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths, and the pages of what is not packed, back to the host, once for all layers."""
        self.total = meta.kv_len.tolist()
        self.new = [1] * len(self.total) if meta.max_q == 1 else meta.cu_q.diff().tolist()
        self.packed, self.apart = [], range(len(self.total))
        table = meta.block_table
        self.starts = list(accumulate(self.new, initial=0))
        if meta.kv_len.is_cuda and self.takes:
            self.pack(meta)
            # Where nothing stays apart, nothing more is asked of the device.
            table = table[torch.tensor(self.apart, device=table.device)] if self.apart else table[:0]
        self.places = {}
        for row, pages in zip(self.apart, table.tolist(), strict=True):
            used = -(-self.total[row] // meta.block_size)
            self.places[row] = in_a_row(pages[:used], self.total[row], meta.block_size) or meta.block_table[row, :used]
        # Nothing hides from one token: where it came alone, on a CPU, fewer operations are made of it.
        one = len(self.total) == meta.max_q == 1 and not meta.kv_len.is_cuda and self.shape.window is None
        place = self.places[0] if one else None
        self.alone = place if isinstance(place, slice) else None

    def pack(self, meta: StepMeta) -> None:
        """Puts together what is attended to at once: sequences with one new token, and sequences with several."""
        single, several, apart = [], [], []
        for row, (new, total) in enumerate(zip(self.new, self.total, strict=True)):
            if new == 1:
                single.append(row)
            elif new == total and self.shape.window is None and plan_pays(new):
                apart.append(row)
            else:
                several.append(row)
        if len(single) == 1 and not self.splits:
            apart += single
            single = []
        self.packed = [self.together(rows, meta) for rows in (single, several) if rows]
        self.apart = apart

    def together(self, rows: list[int], meta: StepMeta) -> Packed:
        """What is known of these sequences before any layer."""
        device = meta.kv_len.device
        new, total = [self.new[row] for row in rows], [self.total[row] for row in rows]
        everything = len(rows) == len(self.new)
        cu_q = meta.cu_q
        tokens = None
        if not everything:
            # A step can have a hundred thousand, which Python takes some 16 ms to list.
            counts = torch.tensor(new, device=device)
            moved = torch.tensor([self.starts[row] for row in rows], device=device) - (counts.cumsum(0) - counts)
            tokens = torch.arange(sum(new), device=device) + moved.repeat_interleave(counts, output_size=sum(new))
            cu_q = torch.tensor([0, *accumulate(new)], dtype=torch.int32, device=device)
        if new == total:
            return Packed(tokens, None, cu_q, cu_q, max(new), max(new))
        cu_kv = torch.tensor([0, *accumulate(total)], dtype=torch.int32, device=device)
        if len(rows) == 1:
            used = -(-total[0] // meta.block_size)
            place = in_a_row(meta.block_table[rows[0], :used].tolist(), total[0], meta.block_size)
            if place is not None:
                return Packed(tokens, place, cu_q, cu_kv, max(new), max(total))
        sequence = torch.repeat_interleave(cu_kv.diff(), output_size=sum(total))
        position = torch.arange(sum(total), device=device) - cu_kv[sequence]
        table = meta.block_table if everything else meta.block_table[torch.tensor(rows, device=device)]
        pages = table[sequence, position // meta.block_size].long()
        slots = pages * meta.block_size + position % meta.block_size
        return Packed(tokens, slots, cu_q, cu_kv, max(new), max(total))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        if self.alone is not None:
            return self.last(q, kv, self.alone)
        if self.packed or not self.takes:
            # What the flash kernel does not take now it most likely will not in the next step either.
            self.takes = flash_takes(q, k, v, kv)
        if self.packed and self.takes:
            if self.packed[0].tokens is None:
                return self.at_once(self.packed[0], q, k, v, kv)
            out = torch.empty_like(q)
            for part in self.packed:
                assert part.tokens is not None
                out.index_copy_(0, part.tokens, self.at_once(part, q, k, v, kv))
            with among(PLANLESS, q):
                for row, attended in zip(self.apart, self.each(self.apart, q, k, v, kv, meta), strict=True):
                    out[self.starts[row] : self.starts[row + 1]] = attended
            return out
        with among(PLANLESS, q):
            outputs = self.each(range(len(self.new)), q, k, v, kv, meta)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def each(self, rows: Sequence[int], q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> list[Tensor]:
        """[new, q_heads, head_dim] for each of these sequences."""
        outputs = []
        slots = kv.flatten(1, 2)
        asked: Sequence[Tensor] = q.split(self.new)  # type: ignore[no-untyped-call]
        for row in rows:
            new, total, place = self.new[row], self.total[row], self.places.get(row)
            if q.is_cuda and new == total:
                # What is in the cache is what just came.
                came = slice(self.starts[row], self.starts[row] + new)
                keys, values = (part[came].transpose(0, 1) for part in (k, v))
            else:
                if place is None:
                    place = meta.block_table[row, : -(-total // meta.block_size)]
                kept = (
                    slots[:, place] if isinstance(place, slice) else kv.index_select(1, place).flatten(1, 2)[:, :total]
                )
                keys, values = kept.transpose(1, 2).to(q.dtype).unbind()
            mask = None if new == 1 or new == total else self.mask(new, total, q.device)
            if self.shape.window is not None and total > self.shape.window:
                mask = self.mask(new, total, q.device)
            with nullcontext() if mask is None and not plan_pays(new) else among(PLANNED, q):
                attended = scaled_dot_product_attention(
                    asked[row].transpose(0, 1).unsqueeze(0),
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

    def at_once(self, part: Packed, q: Tensor, k: Tensor, v: Tensor, kv: Tensor) -> Tensor:
        """[tokens, q_heads, head_dim] for the new tokens of these sequences."""
        if part.tokens is not None:
            q = q.index_select(0, part.tokens)
        if isinstance(part.slots, slice):
            k, v = kv.view(2, -1, *kv.shape[3:])[:, part.slots].unbind()
        elif part.slots is not None:
            # Rows of numbers: what is gathered row by row is gathered fastest.
            rows = kv.view(2, -1, kv.shape[3] * kv.shape[4])
            k, v = (half.index_select(0, part.slots).view(-1, *kv.shape[3:]) for half in rows)
        elif part.tokens is not None:
            k, v = k.index_select(0, part.tokens), v.index_select(0, part.tokens)
        window = self.shape.window
        # Nothing hides from one token, and the kernel that is not told of a mask reads a key once for all heads that share it.
        hides = part.max_q > 1 or window is not None
        attended: Tensor = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            part.cu_q,
            part.cu_kv,
            part.max_q,
            part.max_kv,
            0.0,
            hides,
            False,
            scale=self.shape.scale,
            window_size_left=None if window is None else window - 1,
            window_size_right=0 if hides else None,
        )[0]
        return attended

    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        """bool[new, total]: which position each new token may read."""
        query = torch.arange(total - new, total, device=device)[:, None]
        key = torch.arange(total, device=device)
        allowed = key <= query
        if self.shape.window is not None:
            allowed &= key > query - self.shape.window
        return allowed


def in_a_row(pages: list[int], total: int, size: int) -> slice | None:
    """The slots of pages that follow each other, which a fresh cache hands out: they are read where they lie; others are gathered."""
    first = pages[0]
    return slice(first * size, first * size + total) if pages == list(range(first, first + len(pages))) else None


def flash_takes(q: Tensor, k: Tensor, v: Tensor, kv: Tensor) -> bool:
    """Whether the flash kernel can be called by itself: on what it is made for, where no gradient is asked for."""
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    narrow = q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == kv.dtype
    there = not q.is_cuda or has_flash(q.device.index)
    return narrow and there and not wanted and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


@cache
def has_flash(device: int) -> bool:
    """Whether this PyTorch has the kernel, and the device is one that it runs on: Ampere or later."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)
