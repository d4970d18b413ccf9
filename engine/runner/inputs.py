"""What a scheduled step looks like on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.scheduler import Scheduled
from engine.slots.attention import Phase, StepMeta


def step_inputs(step: Sequence[Scheduled], block_size: int, device: torch.device) -> tuple[Tensor, StepMeta]:
    """Token ids int64[T] of a step, and where they belong. Two host-to-device copies, whatever the batch."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    cu_q, kv_len = [0], []
    width = max(len(scheduled.sequence.pages) for scheduled in step)
    table: list[int] = []
    for scheduled in step:
        sequence, new = scheduled.sequence, scheduled.new
        start, pages = sequence.computed, sequence.pages
        first = start - sequence.evicted
        if new == 1:
            ids.append(sequence.tokens[start])
            positions.append(start)
            slots.append(pages[first // block_size] * block_size + first % block_size)
        else:
            ids += sequence.tokens[start : start + new]
            positions += range(start, start + new)
            slots += [pages[at // block_size] * block_size + at % block_size for at in range(first, first + new)]
        cu_q.append(cu_q[-1] + new)
        kv_len.append(first + new)
        table += pages
        table += [0] * (width - len(pages))
    batch = len(step)
    news = [scheduled.new for scheduled in step]
    ids_, positions_, slots_ = torch.tensor((ids, positions, slots), device=device).unbind()
    ints = torch.tensor(cu_q + kv_len + table, dtype=torch.int32, device=device)
    cu_q_, kv_len_, table_ = ints.split_with_sizes((batch + 1, batch, batch * width))
    return ids_, StepMeta(
        phase=phase_of(news, kv_len),
        cu_q=cu_q_,
        max_q=max(news),
        kv_len=kv_len_,
        max_kv=max(kv_len),
        block_table=table_.view(batch, width),
        slot_map=slots_,
        positions=positions_,
        block_size=block_size,
    )


def phase_of(new: Sequence[int], kv_len: Sequence[int]) -> Phase:
    """The phase of a step in which sequence b adds the last `new[b]` of its `kv_len[b]` tokens (see StepMeta)."""
    if max(new) == 1:
        return "decode"
    return "prefill" if min(new) > 1 or list(new) == list(kv_len) else "mixed"
