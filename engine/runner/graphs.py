"""Decode steps as CUDA graphs: one launch a token, and several tokens before the host looks.

A graph computes a step, draws the next tokens and moves its own inputs on by one, so that replaying it `ahead` times
decodes `ahead` tokens with nothing between them but the device's own work.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.models.transformer import Forward
from engine.sampler import Draw, Sampling, sample
from engine.scheduler import Scheduled
from engine.slots.attention import StepMeta

GREEDY, SAMPLED, FILTERED = Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, min_p=0.5)
SMALLEST_KV = 512


@dataclass
class Recorded:
    """A graph and the buffers that it reads and writes; row b of each belongs to sequence b, the rest is padding.

    slots: int64[ahead + 1, batch], where in the cache the tokens to come go; count: int64[1], how many have been drawn
    since; drawn: int64[ahead, batch].
    """

    meta: StepMeta
    ids: Tensor
    draw: Draw | None
    slots: Tensor
    drawn: Tensor
    count: Tensor
    graph: Any = None


class DecodeGraphs:
    """Records a graph for each batch size and bound on the cache length when it is first needed.

    Batch sizes are rounded up to powers of two (in eighths above 8), lengths to powers of two; padding rows read and
    write page 0. `seconds` is the time spent recording, compilation included.
    """

    def __init__(self, forward: Forward, kv: Sequence[Tensor], block_size: int, ahead: int) -> None:
        self.forward, self.kv, self.block_size, self.ahead = forward, kv, block_size, ahead
        self.device = forward.model.device
        self.recorded: dict[tuple[int, int, Sampling], Recorded] = {}
        self.shared: Any = None
        self.seconds = 0.0

    def tokens(self, step: Sequence[Scheduled], ahead: int) -> list[list[int]]:
        """`ahead` tokens for each sequence of a decode step. Pages for them are the sequences' already."""
        samplings = [s.sequence.sampling for s in step]
        draw = Draw.of(samplings, self.forward.model.config.vocab, self.device)
        mode = GREEDY if draw is None else FILTERED if draw.filtered else SAMPLED
        batch = padded_batch(len(step))
        longest = max(s.sequence.computed - s.sequence.evicted for s in step) + ahead
        key = (batch, max(SMALLEST_KV, 1 << (longest - 1).bit_length()), mode)
        if key not in self.recorded:
            began = time.perf_counter()
            recorded = self.buffers(*key)
            self.record(recorded)
            # Only now: what could not be recorded, for want of memory, is tried again by the next step of its size.
            self.recorded[key] = recorded
            self.seconds += time.perf_counter() - began
        recorded = self.recorded[key]
        self.fill(recorded, step, draw)
        for _ in range(ahead):
            recorded.graph.replay()
        return recorded.drawn[:ahead, : len(step)].T.tolist()

    def fill(self, recorded: Recorded, step: Sequence[Scheduled], draw: Draw | None) -> None:
        """Copies where each sequence stands into the buffers of a graph."""
        size, padding = self.block_size, len(recorded.ids) - len(step)
        width = recorded.meta.block_table.shape[1]
        ids, positions, slots, lengths, table = [], [], [], [], []
        steps = range(len(recorded.slots))
        for scheduled in step:
            sequence = scheduled.sequence
            at = sequence.computed - sequence.evicted
            ids.append(sequence.tokens[-1])
            positions.append(sequence.computed)
            # After the last page comes none: the slot after the last step is not used, but must exist.
            pages = [sequence.pages[min((at + step) // size, len(sequence.pages) - 1)] for step in steps]
            slots.append([page * size + (at + step) % size for step, page in zip(steps, pages, strict=True)])
            lengths.append(at + 1)
            table += sequence.pages
            table += [0] * (width - len(sequence.pages))
        blank = [0] * padding
        ahead = zip(*slots, *([0] * len(steps) for _ in blank), strict=True)
        longs = torch.tensor([ids + blank, positions + blank, *ahead]).to(self.device)
        recorded.ids.copy_(longs[0])
        recorded.meta.positions.copy_(longs[1])
        recorded.slots.copy_(longs[2:])
        recorded.meta.slot_map.copy_(longs[2])
        recorded.meta.kv_len.copy_(torch.tensor(lengths + [1] * padding, dtype=torch.int32))
        recorded.meta.block_table[: len(step)].copy_(torch.tensor(table, dtype=torch.int32).view(len(step), width))
        recorded.count.zero_()
        if recorded.draw is not None and draw is not None:
            for buffer, values in zip(recorded.draw[:5], draw[:5], strict=True):
                buffer[: len(step)].copy_(values)

    def buffers(self, batch: int, max_kv: int, mode: Sampling) -> Recorded:
        """Buffers of a graph, all rows padding."""
        device, vocab = self.device, self.forward.model.config.vocab
        meta = StepMeta(
            phase="decode",
            cu_q=torch.arange(batch + 1, dtype=torch.int32, device=device),
            max_q=1,
            kv_len=torch.ones(batch, dtype=torch.int32, device=device),
            max_kv=max_kv,
            block_table=torch.zeros(batch, -(-max_kv // self.block_size), dtype=torch.int32, device=device),
            slot_map=torch.zeros(batch, dtype=torch.int64, device=device),
            positions=torch.zeros(batch, dtype=torch.int64, device=device),
            block_size=self.block_size,
        )
        return Recorded(
            meta=meta,
            ids=torch.zeros(batch, dtype=torch.int64, device=device),
            draw=Draw.of([mode.seeded(0)] * batch, vocab, device),
            slots=torch.zeros(self.ahead + 1, batch, dtype=torch.int64, device=device),
            drawn=torch.zeros(self.ahead, batch, dtype=torch.int64, device=device),
            count=torch.zeros(1, dtype=torch.int64, device=device),
        )

    def record(self, recorded: Recorded) -> None:
        """Runs a step of nothing but padding twice, to compile what compiles, then records it."""
        # Of all sizes: cuBLAS keeps 32 MiB for each stream that it ever saw.
        pool, stream = self.shared = self.shared or (torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device))
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step(recorded)
                recorded.count.zero_()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        recorded.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded.graph, pool=pool):
            self.step(recorded)

    def step(self, recorded: Recorded) -> None:
        """What is recorded: a step, its draw, and its inputs moved on by one token."""
        meta = recorded.meta
        for attention in self.forward.planned:
            attention.plan(meta)
        hidden = self.forward(recorded.ids, meta, self.kv, fixed=True)
        logits = self.forward.logits(hidden, fixed=True)
        recorded.ids.copy_(sample(logits, recorded.draw, meta.positions + 1))
        recorded.drawn.index_copy_(0, recorded.count, recorded.ids[None])
        recorded.count.add_(1)
        meta.positions.add_(1)
        meta.kv_len.add_(1)
        torch.index_select(recorded.slots, 0, recorded.count, out=meta.slot_map[None])


def padded_batch(batch: int) -> int:
    """The batch size of the graph that serves `batch` sequences."""
    power = 1 << (batch - 1).bit_length()
    step = max(1, power // 8)
    return power if batch <= 8 else -(-batch // step) * step
