"""What a scheduled step looks like on the device."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.scheduler import Scheduled
from engine.scheduler import Sequence as Run
from engine.slots.attention import Phase, StepMeta


class StepInputs:
    """The inputs of one step after the other.

    On the CPU, where tensors lie in memory that the host writes, a step in which the same sequences decode their next token is
    made by counting on in the tensors of the step before. Elsewhere each step is two copies to the device, whatever the batch.
    """

    def __init__(self, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        self._longs, self._ints = array("q"), array("i")
        self._decoded: list[Run] = []
        self._pages: list[list[int]] = []
        self._inputs: tuple[Tensor, StepMeta]

    def of(self, step: Sequence[Scheduled]) -> tuple[Tensor, StepMeta]:
        """Token ids int64[T] of a step, and where they belong; both hold until the next call."""
        if not self._counted_on(step):
            self._build(step)
        return self._inputs

    def _counted_on(self, step: Sequence[Scheduled]) -> bool:
        """Makes the inputs of `step` of those before, if it decodes the same sequences, each one token further within its page.

        Where it answers False they are to be built anew.
        """
        batch, size, longs, ints = len(step), self.block_size, self._longs, self._ints
        if batch != len(self._decoded):
            return False
        for row, (sequence, new) in enumerate(step):
            at = sequence.computed - sequence.evicted
            if new != 1 or sequence is not self._decoded[row] or at != ints[batch + 1 + row] or not at % size:
                return False
            if self._pages[row] != sequence.pages:
                return False
            longs[row] = sequence.tokens[sequence.computed]
            longs[batch + row] += 1
            longs[2 * batch + row] += 1
            ints[batch + 1 + row] = at + 1
        return True

    def _build(self, step: Sequence[Scheduled]) -> None:
        size = self.block_size
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
            ids += sequence.tokens[start : start + new]
            positions += range(start, start + new)
            slots += [pages[at // size] * size + at % size for at in range(first, first + new)]
            cu_q.append(cu_q[-1] + new)
            kv_len.append(first + new)
            table += pages
            table += [0] * (width - len(pages))
        batch = len(step)
        news = [scheduled.new for scheduled in step]
        self._longs, self._ints = array("q", ids + positions + slots), array("i", cu_q + kv_len + table)
        # On the CPU the tensors take over the memory of the arrays.
        ids_, positions_, slots_ = torch.frombuffer(self._longs, dtype=torch.int64).to(self.device).view(3, -1).unbind()
        ints = torch.frombuffer(self._ints, dtype=torch.int32).to(self.device)
        cu_q_, kv_len_, table_ = ints.split_with_sizes((batch + 1, batch, batch * width))
        self._decoded = [s.sequence for s in step] if self.device.type == "cpu" and max(news) == 1 else []
        self._pages = [list(sequence.pages) for sequence in self._decoded]
        max_kv = max(kv_len)
        if self._decoded:
            # The steps that count on in these inputs stay within their pages.
            max_kv = -(-max_kv // size) * size
        self._inputs = (
            ids_,
            StepMeta(
                phase=phase_of(news, kv_len),
                cu_q=cu_q_,
                max_q=max(news),
                kv_len=kv_len_,
                max_kv=max_kv,
                block_table=table_.view(batch, width),
                slot_map=slots_,
                positions=positions_,
                block_size=size,
            ),
        )


def phase_of(new: Sequence[int], kv_len: Sequence[int]) -> Phase:
    """The phase of a step in which sequence b adds the last `new[b]` of its `kv_len[b]` tokens (see StepMeta)."""
    if max(new) == 1:
        return "decode"
    return "prefill" if min(new) > 1 or list(new) == list(kv_len) else "mixed"
