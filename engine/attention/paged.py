# /// swapbench
# kind = "attention"
# name = "paged"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# head_dims = [16, 32, 64, 128, 256]
# deterministic = true
# cuda_graph = true
# needs = ["triton"]
# summary = "Triton kernels that read pages where they lie: split over the cache for decode, tiled for prompts."
# ///
"""Paged attention for GPUs: nothing is gathered or repeated before it is multiplied.

Three paths, chosen for each sequence by `plan`. One new token: its cache is split over several programs, whose softmaxes
are joined afterwards (flash decoding). Long prompts without history: PyTorch's flash attention on the new keys and values.
Everything else: tiles of queries over pages (flash attention).
"""

import functools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.kernels import PLANLESS, PLANNED, among, plan_pays
from engine.slots.launch import overlapping
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # the header says that it is needed; the file can still be read without it
    triton = None

LONG_PROMPT = 1024
"""New tokens from which on a launch of flash attention for each prompt costs less than its better kernel gains."""

KEYS_A_SPLIT = 64
"""Splitting a cache finer than this costs more in joining than it gains in parallel programs. On an H100 at batch 1, 64 keys
made a decode step over 256 to 512 tokens faster than 256 did."""

MAX_SPLITS = 64

TILE = 64
"""Queries in a tile: one tensor-core instruction of a warp group takes so many rows."""


@functools.cache
def multiprocessors(device: int) -> int:
    """The number of streaming multiprocessors."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@register("attention", "paged")
class Paged(StandardKV):
    """Nothing waits for the device in a pure decode step, so that it can be recorded in a CUDA graph."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.tiles: Tensor | None = None
        self.single: Tensor | None = None
        self.whole: list[tuple[int, int]] = []
        self.decode = True

    def plan(self, meta: StepMeta) -> None:
        """Sorts the sequences of a step into the three paths."""
        self.decode = meta.max_q == 1
        if self.decode:
            return
        bounds = meta.cu_q.tolist()
        totals = meta.kv_len.tolist()
        tiles: list[tuple[int, int, int]] = []
        single: list[int] = []
        self.whole = []
        for sequence, total in enumerate(totals):
            first, last = bounds[sequence], bounds[sequence + 1]
            new = last - first
            if new == 1:
                single.append(sequence)
            elif new == total and new >= LONG_PROMPT and self.shape.window is None:
                self.whole.append((first, last))
            else:
                tiles += [(total - new + start, sequence, start) for start in range(0, new, TILE)]
        # The tiles with the most keys first: whoever starts last should have the least to do.
        tiles.sort(reverse=True)
        device = meta.cu_q.device
        self.tiles = torch.tensor([tile[1:] for tile in tiles], dtype=torch.int32).to(device) if tiles else None
        self.single = torch.tensor(single, dtype=torch.int32).to(device) if single else None

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        """Keys and values in one kernel; in a decode step `forward` writes them, which has them at hand."""
        if meta.max_q == 1:
            return
        width = self.shape.kv_heads * self.shape.head_dim
        write_kernel[(len(k),)](
            k.contiguous(),
            v.contiguous(),
            kv,
            meta.slot_map,
            kv.stride(0),
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            num_warps=4,
            **overlapping(k),
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        q = q.contiguous()
        out = torch.empty_like(q)
        if self.decode:
            self.decode_step(q, k, v, kv, meta, out, None, len(q))
            return out
        if self.single is not None:
            self.decode_step(q, k, v, kv, meta, out, self.single, len(self.single))
        if self.tiles is not None:
            self.tile_step(q, kv, meta, out, self.tiles)
        for first, last in self.whole:
            queries, keys, values = (part[first:last].transpose(0, 1)[None] for part in (q, k, v))
            new = last - first
            with among(PLANNED if plan_pays(new) else PLANLESS, q):
                attended = scaled_dot_product_attention(
                    queries,
                    keys,
                    values,
                    is_causal=True,
                    scale=self.shape.scale,
                    enable_gqa=self.shape.q_heads != self.shape.kv_heads,
                )
            out[first:last] = attended[0].transpose(0, 1)
        return out

    def decode_step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv: Tensor,
        meta: StepMeta,
        out: Tensor,
        which: Tensor | None,
        count: int,
    ) -> None:
        """One new token of `count` sequences: all in order, or those that `which` names."""
        shape = self.shape
        splits = split_count(count * shape.kv_heads, min(meta.max_kv, shape.window or meta.max_kv), q)
        group = shape.q_heads // shape.kv_heads
        partial = lse = out
        if splits > 1:
            partial = torch.empty((count, shape.q_heads, splits, shape.head_dim), dtype=torch.float32, device=q.device)
            lse = torch.empty((count, shape.q_heads, splits), dtype=torch.float32, device=q.device)
        decode_kernel[(count, shape.kv_heads, splits)](
            q,
            k.contiguous(),
            v.contiguous(),
            kv,
            out,
            partial,
            lse,
            meta.kv_len,
            meta.cu_q,
            meta.block_table,
            meta.slot_map,
            meta.kv_len if which is None else which,
            meta.block_table.stride(0),
            kv.stride(0),
            shape.scale * LOG2_E,
            KV_HEADS=shape.kv_heads,
            GROUP=group,
            ROWS=max(16, triton.next_power_of_2(group)),
            HEAD_DIM=shape.head_dim,
            PAGE=meta.block_size,
            WINDOW=shape.window or 0,
            SPLITS=splits,
            BLOCK=64 if narrow(q) else 32,
            INDEXED=which is not None,
            **overlapping(q),
            num_warps=4,
            num_stages=3 if narrow(q) else 2,
        )
        if splits > 1:
            join_kernel[(count, shape.q_heads)](
                partial,
                lse,
                out,
                meta.cu_q,
                meta.kv_len if which is None else which,
                Q_HEADS=shape.q_heads,
                HEAD_DIM=shape.head_dim,
                SPLITS=splits,
                INDEXED=which is not None,
                **overlapping(q),
                num_warps=2,
            )

    def tile_step(self, q: Tensor, kv: Tensor, meta: StepMeta, out: Tensor, tiles: Tensor) -> None:
        """Tiles of queries, each (sequence, first of its new tokens)."""
        shape = self.shape
        tile_kernel[(len(tiles), shape.q_heads)](
            q,
            kv,
            out,
            tiles,
            meta.kv_len,
            meta.cu_q,
            meta.block_table,
            meta.block_table.stride(0),
            kv.stride(0),
            shape.scale * LOG2_E,
            Q_HEADS=shape.q_heads,
            KV_HEADS=shape.kv_heads,
            HEAD_DIM=shape.head_dim,
            PAGE=meta.block_size,
            WINDOW=shape.window or 0,
            ROWS=TILE,
            BLOCK=64 if narrow(q) else 32,
            **overlapping(q),
            num_warps=8 if shape.head_dim >= 128 else 4,
            num_stages=2,
        )


LOG2_E = 1.4426950408889634
"""exp(x) = exp2(x * LOG2_E), and GPUs have an instruction for exp2."""


def narrow(q: Tensor) -> bool:
    """Whether a row of a head is at most 256 bytes, so that 64 keys and values fit several times into shared memory."""
    return q.shape[-1] * q.element_size() <= 256


def split_count(programs: int, keys: int, q: Tensor) -> int:
    """Into how many parts, a power of two, a cache is split so that the GPU has two programs for each multiprocessor."""
    wanted = 2 * multiprocessors(q.device.index or 0) if q.is_cuda else 16
    splits = 1
    while splits < MAX_SPLITS and splits * programs < wanted and splits * KEYS_A_SPLIT < keys:
        splits *= 2
    return splits


if triton is not None:

    @triton.jit
    def write_kernel(k, v, kv, slots, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
        """All heads of one token. `values`: distance from keys to values in the cache."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        token = tl.program_id(0).to(tl.int64)
        at = tl.arange(0, BLOCK)
        inside = at < WIDTH
        to = kv + tl.load(slots + token) * WIDTH + at
        tl.store(to, tl.load(k + token * WIDTH + at, mask=inside).to(kv.dtype.element_ty), mask=inside)
        tl.store(to + values, tl.load(v + token * WIDTH + at, mask=inside).to(kv.dtype.element_ty), mask=inside)

    @triton.jit
    def decode_kernel(
        q,
        k,
        v,
        kv,
        out,
        partial,
        lse,
        kv_len,
        cu_q,
        table,
        slots,
        which,
        table_width,
        values,
        scale,
        KV_HEADS: tl.constexpr,
        GROUP: tl.constexpr,
        ROWS: tl.constexpr,
        HEAD_DIM: tl.constexpr,
        PAGE: tl.constexpr,
        WINDOW: tl.constexpr,
        SPLITS: tl.constexpr,
        BLOCK: tl.constexpr,
        INDEXED: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """The query heads of one key/value head of one sequence, over one part of its cache.

        The new token is not read back: the first part takes it from k and v, and stores it. So all that is read of the
        cache lies there since earlier steps, and the first block of it can be on its way before the kernel's turn has
        come. In a mixed step another sequence may just be writing a page that both share: there it waits first.
        """
        index = tl.program_id(0)
        head = tl.program_id(1)
        split = tl.program_id(2)
        sequence = index
        token = index
        if INDEXED:
            if OVERLAP:
                tl.extra.cuda.gdc_launch_dependents()
                tl.extra.cuda.gdc_wait()
            sequence = tl.load(which + index)
            token = tl.load(cu_q + sequence)
        past = tl.load(kv_len + sequence) - 1
        first = 0
        if WINDOW > 0:
            first = tl.maximum(past + 1 - WINDOW, 0)
        part = tl.cdiv(tl.cdiv(past - first, SPLITS), BLOCK) * BLOCK
        low = first + split * part
        high = tl.minimum(low + part, past)

        row = tl.arange(0, ROWS)
        real = (row < GROUP)[:, None]
        channel = tl.arange(0, HEAD_DIM)
        pages = table + sequence.to(tl.int64) * table_width
        heads = kv + head * HEAD_DIM + channel[None, :]
        position = low + tl.arange(0, BLOCK)
        known = position < high
        slot = tl.load(pages + position // PAGE, mask=known, other=0).to(tl.int64) * PAGE + position % PAGE
        where = heads + slot[:, None] * (KV_HEADS * HEAD_DIM)
        keys = tl.load(where, mask=known[:, None], other=0.0)
        rows = tl.load(where + values, mask=known[:, None], other=0.0)
        new_slot = tl.load(slots + token)
        if OVERLAP and not INDEXED:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()

        at = (token.to(tl.int64) * KV_HEADS + head) * GROUP * HEAD_DIM
        queries = tl.load(q + at + row[:, None] * HEAD_DIM + channel[None, :], mask=real, other=0.0)
        new = (token.to(tl.int64) * KV_HEADS + head) * HEAD_DIM + channel
        key = tl.load(k + new).to(kv.dtype.element_ty)
        value = tl.load(v + new).to(kv.dtype.element_ty)
        to = kv + (new_slot * KV_HEADS + head) * HEAD_DIM + channel
        mine = split == 0
        tl.store(to, key, mask=mine)
        tl.store(to + values, value, mask=mine)
        score = tl.sum(queries.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
        best = tl.where(mine, score, float("-inf"))
        norm = tl.zeros((ROWS,), dtype=tl.float32) + tl.where(mine, 1.0, 0.0)
        total = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32) + tl.where(mine, value.to(tl.float32), 0.0)[None, :]
        if low < high:
            best, norm, total = attend(queries, keys, rows, known, scale, best, norm, total)
        for start in range(low + BLOCK, high, BLOCK):
            position = start + tl.arange(0, BLOCK)
            known = position < high
            slot = tl.load(pages + position // PAGE, mask=known, other=0).to(tl.int64) * PAGE + position % PAGE
            where = heads + slot[:, None] * (KV_HEADS * HEAD_DIM)
            keys = tl.load(where, mask=known[:, None], other=0.0)
            rows = tl.load(where + values, mask=known[:, None], other=0.0)
            best, norm, total = attend(queries, keys, rows, known, scale, best, norm, total)
        to_out = out + at + row[:, None] * HEAD_DIM + channel[None, :]
        if SPLITS == 1:
            tl.store(to_out, (total / norm[:, None]).to(out.dtype.element_ty), mask=real)
        else:
            # A part without keys weighs nothing: its sum is zero, and must not be divided by zero.
            empty = norm == 0.0
            line = ((index.to(tl.int64) * KV_HEADS + head) * GROUP + row) * SPLITS + split
            to_partial = partial + line[:, None] * HEAD_DIM + channel[None, :]
            tl.store(to_partial, total / tl.where(empty, 1.0, norm)[:, None], mask=real)
            weight = tl.where(empty, float("-inf"), best + tl.log2(tl.where(empty, 1.0, norm)))
            tl.store(lse + line, weight, mask=row < GROUP)

    @triton.jit
    def join_kernel(
        partial,
        lse,
        out,
        cu_q,
        which,
        Q_HEADS: tl.constexpr,
        HEAD_DIM: tl.constexpr,
        SPLITS: tl.constexpr,
        INDEXED: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """The parts of one query head of one sequence, weighted by what they hold of the softmax's sum."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        index = tl.program_id(0)
        head = tl.program_id(1)
        token = index
        if INDEXED:
            token = tl.load(cu_q + tl.load(which + index))
        split = tl.arange(0, SPLITS)
        channel = tl.arange(0, HEAD_DIM)
        line = (index.to(tl.int64) * Q_HEADS + head) * SPLITS + split
        weight = tl.load(lse + line)
        weight = tl.exp2(weight - tl.max(weight, 0))
        parts = tl.load(partial + line[:, None] * HEAD_DIM + channel[None, :])
        result = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
        at = (token.to(tl.int64) * Q_HEADS + head) * HEAD_DIM
        tl.store(out + at + channel, result.to(out.dtype.element_ty))

    @triton.jit
    def attend(queries, keys, rows, known, scale, best, norm, total):
        """The softmax's running maximum, sum and weighted sum of values, moved on by a block of keys, one of them known."""
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(known[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(best - higher)
        norm = norm * fade + tl.sum(weights, 1)
        total = total * fade[:, None] + tl.dot(weights.to(rows.dtype), rows, input_precision="ieee")
        return higher, norm, total

    @triton.jit
    def tile_kernel(
        q,
        kv,
        out,
        tiles,
        kv_len,
        cu_q,
        table,
        table_width,
        values,
        scale,
        Q_HEADS: tl.constexpr,
        KV_HEADS: tl.constexpr,
        HEAD_DIM: tl.constexpr,
        PAGE: tl.constexpr,
        WINDOW: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS queries of one head over the pages that they see."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        sequence = tl.load(tiles + tl.program_id(0) * 2)
        start = tl.load(tiles + tl.program_id(0) * 2 + 1)
        head = tl.program_id(1)
        kv_head = head // (Q_HEADS // KV_HEADS)
        begin = tl.load(cu_q + sequence)
        new = tl.load(cu_q + sequence + 1) - begin
        total = tl.load(kv_len + sequence)

        row = start + tl.arange(0, ROWS)
        asked = total - new + row
        channel = tl.arange(0, HEAD_DIM)
        at = ((begin + row).to(tl.int64) * Q_HEADS + head) * HEAD_DIM
        real = (row < new)[:, None]
        queries = tl.load(q + at[:, None] + channel[None, :], mask=real, other=0.0)
        low = 0
        if WINDOW > 0:
            low = tl.maximum(total - new + start - WINDOW + 1, 0) // BLOCK * BLOCK
        high = tl.minimum(total - new + start + ROWS, total)
        best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
        norm = tl.zeros((ROWS,), dtype=tl.float32)
        total_out = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32)
        for at_key in range(low, high, BLOCK):
            position = at_key + tl.arange(0, BLOCK)
            known = position < high
            page = tl.load(table + sequence.to(tl.int64) * table_width + position // PAGE, mask=known, other=0)
            slot = page.to(tl.int64) * PAGE + position % PAGE
            where = kv + (slot * KV_HEADS + kv_head)[:, None] * HEAD_DIM + channel[None, :]
            keys = tl.load(where, mask=known[:, None], other=0.0)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            seen = known[None, :] & (position[None, :] <= asked[:, None])
            if WINDOW > 0:
                seen = seen & (position[None, :] > asked[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            # A row that has seen nothing yet has no maximum; infinity minus infinity would be NaN.
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - base[:, None])
            fade = tl.exp2(best - base)
            norm = norm * fade + tl.sum(weights, 1)
            rows = tl.load(where + values, mask=known[:, None], other=0.0)
            total_out = total_out * fade[:, None] + tl.dot(weights.to(rows.dtype), rows, input_precision="ieee")
            best = higher
        result = total_out / tl.where(norm == 0.0, 1.0, norm)[:, None]
        tl.store(out + at[:, None] + channel[None, :], result.to(out.dtype.element_ty), mask=real)
