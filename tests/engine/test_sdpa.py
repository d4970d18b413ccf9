"""What sdpa does on a GPU alone, on any device."""

import pytest
import torch

from engine.attention.sdpa import Sdpa, alike
from engine.slots.attention import AttentionShape, standard_kv, step_meta

SIZE = 16


def test_sequences_are_put_together_of_which_none_is_shorter_than_half_of_the_longest() -> None:
    assert alike({3: 100, 5: 49, 0: 51, 7: 50}) == [[3, 0, 7], [5]]
    assert alike({}) == []


@pytest.mark.parametrize("window", [None, 24])
def test_sequences_at_once_give_what_each_gives_whatever_lies_past_their_ends(window: int | None) -> None:
    shape = AttentionShape(8, 2, 32, 32**-0.5, window)
    totals = [40, 33, 21, 64]
    table = torch.randperm(40)[: len(totals) * 4].view(len(totals), 4)
    meta = step_meta([1] * len(totals), totals, table, SIZE)
    kv = torch.randn(standard_kv(shape, 40, SIZE, "float32").shape)
    for row, total in enumerate(totals):
        # Of whoever had the page before.
        if total % SIZE:
            kv[:, table[row, total // SIZE], total % SIZE :] = float("inf")
        kv[:, table[row, -(-total // SIZE) :]] = float("nan")
    q, new = torch.randn(4, 8, 32), torch.randn(4, 2, 32)
    attention = Sdpa(shape)
    attention.plan(meta)
    each = attention.forward(q, new, new, kv, meta)
    attention.alike = [[3, 0, 1], [2]]
    attention.rows = [torch.tensor(rows) for rows in attention.alike]
    at_once = attention.forward(q, new, new, kv, meta)
    assert torch.isfinite(each).all()
    assert torch.allclose(at_once, each, atol=1e-5)
