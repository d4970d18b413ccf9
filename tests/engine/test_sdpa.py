"""What sdpa does on a GPU alone, on any device, with the kernel that only a GPU has written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention.sdpa import Sdpa, flash_takes
from engine.slots.attention import AttentionShape, StepMeta, standard_kv, step_meta

SIZE = 16
SHAPE = AttentionShape(8, 2, 32, 32**-0.5)
MIXED = ([1, 7, 1, 12, 1, 1024], [40, 7, 33, 45, 64, 1024])


def by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_kv: Tensor,
    max_q: int,
    max_kv: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    window_size_left: int | None,
    window_size_right: int | None,
) -> tuple[Tensor]:
    """aten::_flash_attention_forward of packed sequences, whose last tokens see all keys."""
    assert not dropout
    assert not debug
    assert max_q == int(cu_q.diff().max())
    assert max_kv == int(cu_kv.diff().max())
    assert cu_q.dtype == cu_kv.dtype == torch.int32
    outputs = []
    keys = zip(k.split(cu_kv.diff().tolist()), v.split(cu_kv.diff().tolist()), strict=True)
    for queries, (kept, values) in zip(q.split(cu_q.diff().tolist()), keys, strict=True):
        group = q.shape[1] // k.shape[1]
        scores = scale * torch.einsum("qhd,khd->hqk", queries.float(), kept.repeat_interleave(group, 1).float())
        back = torch.arange(len(kept) - len(queries), len(kept))[:, None] - torch.arange(len(kept))
        if causal or window_size_right == 0:
            scores = scores.masked_fill(back < 0, float("-inf"))
        if window_size_left is not None and window_size_left >= 0:
            scores = scores.masked_fill(back > window_size_left, float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values.repeat_interleave(group, 1).float()))
    return (torch.cat(outputs).to(q.dtype),)


def step(
    shape: AttentionShape, news: list[int], totals: list[int], fresh: bool = False
) -> tuple[StepMeta, list[Tensor]]:
    """A step on pages drawn at random, or as a fresh cache hands them out, with q, k, v and a cache whose unread slots hold what must not be read."""
    pages = [-(-total // SIZE) for total in totals]
    order = torch.arange(2 * sum(pages)) if fresh else torch.randperm(2 * sum(pages))
    drawn = order.split([*pages, sum(pages)])
    table = torch.stack([torch.cat((own, drawn[-1]))[: max(pages)] for own in drawn[:-1]])
    meta = step_meta(news, totals, table, SIZE)
    kv = torch.full(standard_kv(shape, 2 * sum(pages), SIZE, "bfloat16").shape, float("nan"), dtype=torch.bfloat16)
    for row, total in enumerate(totals):
        for at in range(total):
            kv[:, table[row, at // SIZE], at % SIZE] = torch.randn(2, shape.kv_heads, shape.head_dim).bfloat16()
    q = torch.randn(sum(news), shape.q_heads, shape.head_dim).bfloat16()
    k, v = torch.randn(2, sum(news), shape.kv_heads, shape.head_dim).bfloat16()
    Sdpa(shape).write(k, v, kv, meta)
    return meta, [q, k, v, kv]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(
    ("news", "totals"),
    [
        pytest.param([1, 1, 1, 1], [40, 33, 1, 64], id="one token each"),
        pytest.param([37, 3, 16], [37, 3, 16], id="prompts"),
        pytest.param([9, 16, 5], [50, 16, 21], id="chunks with a history"),
        pytest.param(*MIXED, id="everything"),
        pytest.param([1, 30], [70, 30], id="one of each"),
        pytest.param([1], [70], id="one token"),
        pytest.param([9], [70], id="one chunk"),
    ],
)
def test_sequences_at_once_give_what_each_gives(
    news: list[int], totals: list[int], window: int | None, fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = 0

    def counted(*args: Any, **keywords: Any) -> tuple[Tensor]:
        nonlocal ran
        ran += 1
        return by_definition(*args, **keywords)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", counted)
    shape = AttentionShape(8, 2, 32, 32**-0.5, window)
    meta, tensors = step(shape, news, totals, fresh)
    attention = Sdpa(shape)
    attention.plan(meta)
    each = attention.forward(*tensors, meta)
    attention.pack(meta)
    attention.alone = None  # which only a CPU asks for
    at_once = attention.forward(*tensors, meta)
    assert ran == len(attention.packed)
    assert bool(ran) == (not (news == [1] and window))
    assert torch.isfinite(each).all()
    assert torch.allclose(at_once.float(), each.float(), atol=2e-2)


def test_what_is_put_together_and_what_stays_alone() -> None:
    meta, _ = step(SHAPE, *MIXED)
    attention = Sdpa(SHAPE)
    attention.plan(meta)
    attention.pack(meta)
    single, several = attention.packed
    assert single.max_q == 1
    assert single.tokens is not None
    assert single.tokens.tolist() == [0, 8, 21]
    assert several.max_q == 12
    assert several.max_kv == 45
    assert several.cu_q.tolist() == [0, 7, 19]
    assert attention.apart == [5]  # a prompt for which another kernel is worth its plan


@pytest.mark.parametrize("new", [1, 5])
def test_the_only_sequence_is_packed_where_the_kernel_splits_its_keys(new: int) -> None:
    for shape, packed in (
        (SHAPE, True),
        (AttentionShape(2, 2, 32, 32**-0.5), new > 1),  # of no group, a single token's keys are read by one program
        (AttentionShape(8, 2, 32, 32**-0.5, 24), new > 1),
    ):
        meta, _ = step(shape, [new], [40])
        attention = Sdpa(shape)
        attention.plan(meta)
        attention.pack(meta)
        assert bool(attention.packed) == packed
        assert list(attention.apart) == ([] if packed else [0])


def test_the_kernel_is_told_of_a_mask_only_where_something_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    def noted(*args: Any, **keywords: Any) -> tuple[Tensor]:
        told.append((args[8], keywords["window_size_left"], keywords["window_size_right"]))
        return by_definition(*args, **keywords)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", noted)
    for window in (None, 24):
        shape = AttentionShape(8, 2, 32, 32**-0.5, window)
        for news in ([1, 1], [3, 3]):
            meta, tensors = step(shape, news, [9, 40])
            attention = Sdpa(shape)
            attention.plan(meta)
            attention.pack(meta)
            attention.forward(*tensors, meta)
    assert told == [(False, None, None), (True, None, 0), (True, 23, 0), (True, 23, 0)]


def test_the_kernel_takes_narrow_numbers_of_the_caches_kind_and_gives_no_gradient() -> None:
    q, kv = torch.zeros(1, 2, 64, dtype=torch.float16), torch.zeros(2, 1, 16, 1, 64, dtype=torch.float16)
    k, v = torch.zeros(2, 1, 1, 64, dtype=torch.float16)
    assert flash_takes(q, k, v, kv)
    assert not flash_takes(q.float(), k.float(), v.float(), kv.float())
    assert not flash_takes(q, k, v, kv.bfloat16())
    assert not flash_takes(q[..., :60], k, v, kv)
    for learns in (q.clone(), k.clone(), v.clone()):
        learns.requires_grad_()
        given = [learns if learns.shape == each.shape else each for each in (q, k, v)]
        assert not flash_takes(*given, kv)
    with torch.no_grad():
        assert flash_takes(q.requires_grad_(), k, v, kv)


def test_what_the_kernel_did_not_take_is_not_packed_in_the_next_step() -> None:
    meta, tensors = step(SHAPE, [1, 1], [40, 33])
    attention = Sdpa(SHAPE)
    attention.plan(meta)
    attention.pack(meta)
    attention.forward(*(tensor.float() for tensor in tensors), meta)
    assert not attention.takes


def test_the_kernel_has_the_parameters_that_it_is_given() -> None:
    """It is no public function: each release of PyTorch that this runs with has to have it like this."""
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[:3] == ["query", "key", "value"]
    assert names[3:10] == ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask"]
    assert {"scale", "window_size_left", "window_size_right"} <= set(names[10:])
