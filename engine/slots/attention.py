"""The attention slot: paged, packed attention over queries of several sequences at once."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from engine.slots.kind import TensorSpec

Phase = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, eq=False)
class StepMeta:
    """Where the tokens of one engine step belong. All tensors are on the device of the step, are only read, and hold until the
    next step, which may be written over them.

    A step packs the new tokens of B sequences, one after the other, into T rows. Sequence b owns rows
    `cu_q[b]` up to `cu_q[b + 1]`; its keys and values fill the first `kv_len[b]` positions of the pages
    `block_table[b]`, of which the last `cu_q[b + 1] - cu_q[b]` are the new tokens of this step.

    phase: "decode" where every sequence has one new token, "prefill" where every one has all its tokens new or a chunk
        of several, "mixed" otherwise.
    cu_q: int32[B + 1], cumulative numbers of new tokens, starting at 0.
    max_q: the largest number of new tokens of a sequence.
    kv_len: int32[B], tokens in the cache after this step, the new ones included.
    max_kv: the largest of `kv_len`, or an upper bound of it (a bound lets one CUDA graph, or one tensor, serve many steps).
    block_table: int32[B, max_blocks], the page of each run of `block_size` positions. Entries past a sequence's last
        page are unspecified, but name an existing page.
    slot_map: int64[T], where each new token's key and value go: page * block_size + offset. Always an existing slot;
        no two tokens that matter share one.
    positions: int64[T], position of each new token in its sequence, counted from 0.
    block_size: positions in a page.
    """

    phase: Phase
    cu_q: Tensor
    max_q: int
    kv_len: Tensor
    max_kv: int
    block_table: Tensor
    slot_map: Tensor
    positions: Tensor
    block_size: int


@dataclass(frozen=True)
class AttentionShape:
    """What is fixed for a layer.

    `scale` multiplies the scores before the softmax (usually head_dim ** -0.5). Query head h reads key/value head
    h // (q_heads // kv_heads). With a `window` of w, a token attends to itself and the w - 1 positions before it.
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None


@runtime_checkable
class Attention(Protocol):
    """What an attention implementation offers. The engine makes one instance for each distinct shape in a model.

    In each step the engine calls `plan` once, and then for each layer `write` and `forward` with that layer's cache.
    Nothing may be kept from one step to the next but what `plan` can compute anew from `meta`: the pages behind a
    block table change between steps.

    Optional: `allocate(name: str, spec: TensorSpec, device) -> Tensor` where storage of the cache is not to be plain
    zeros; `evict(kv, meta) -> Tensor` (int64, pages that may be freed); for class S
    `select(q, k, kv, meta) -> Tensor` (bool[T, q_heads, max_blocks], true where a query head of a token reads the
    page), called after `forward` of the same step, so that what `forward` has chosen can be kept for it.
    """

    def __init__(self, shape: AttentionShape) -> None: ...

    def kv_spec(self, num_blocks: int, block_size: int, dtype: str) -> TensorSpec:
        """Storage of one layer's cache. Standard: [2, num_blocks, block_size, kv_heads, head_dim], keys first."""
        ...

    def plan(self, meta: StepMeta) -> None:
        """Prepares a step; the one place that may wait for the device."""
        ...

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        """Puts the new keys and values, each [T, kv_heads, head_dim], into the cache at `meta.slot_map`.

        Where each sequence has one new token (`meta.max_q` is 1) this may be left to `forward`, which then follows with the
        same `k` and `v`: after `forward` they are in the cache, whoever put them there.
        """
        ...

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Causal attention of q [T, q_heads, head_dim] over the sequences' caches, after `write` of the same step.

        `k` and `v` are what was just written, for implementations that need not read them back.
        Returns [T, q_heads, head_dim] in the dtype of q; later calls must leave that as it is.
        """
        ...


class StandardKV:
    """A base for implementations whose cache has the standard layout: they need only add `forward`."""

    def __init__(self, shape: AttentionShape) -> None:
        self.shape = shape

    def kv_spec(self, num_blocks: int, block_size: int, dtype: str) -> TensorSpec:
        """Returns [2, num_blocks, block_size, kv_heads, head_dim] in `dtype`."""
        return standard_kv(self.shape, num_blocks, block_size, dtype)

    def plan(self, meta: StepMeta) -> None:
        """Needs nothing."""

    def write(self, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> None:
        """Scatters the new tokens into their slots."""
        slots = kv.view(2, -1, *kv.shape[3:])
        if len(k) == 1 and not k.is_cuda:
            slots.index_copy_(1, meta.slot_map, torch.stack((k, v)).to(kv.dtype))
            return
        slots[0].index_copy_(0, meta.slot_map, k.to(kv.dtype))
        slots[1].index_copy_(0, meta.slot_map, v.to(kv.dtype))


def standard_kv(shape: AttentionShape, num_blocks: int, block_size: int, dtype: str) -> TensorSpec:
    """The standard cache layout: [2, num_blocks, block_size, kv_heads, head_dim], keys first."""
    return TensorSpec((2, num_blocks, block_size, shape.kv_heads, shape.head_dim), dtype)


def step_meta(
    new: list[int], total: list[int], block_table: Tensor, block_size: int, device: torch.device | str = "cpu"
) -> StepMeta:
    """The step in which sequence b adds the last `new[b]` of its `total[b]` tokens, on pages `block_table[b]`.

    block_table: int[B, max_blocks] on the CPU. Raises ValueError where the pages do not suffice.
    """
    if not new or any(not 0 < n <= t for n, t in zip(new, total, strict=True)):
        raise ValueError(f"Each sequence needs 0 < new <= total tokens; got new {new}, total {total}.")
    if max(total) > block_table.shape[1] * block_size or block_table.shape[0] != len(new):
        raise ValueError(
            f"The block table {tuple(block_table.shape)} has too few pages of {block_size} for totals {total}."
        )
    counts = torch.tensor(new, dtype=torch.int64)
    totals = torch.tensor(total, dtype=torch.int64)
    cu_q = torch.zeros(len(new) + 1, dtype=torch.int32)
    cu_q[1:] = counts.cumsum(0)
    owner = torch.repeat_interleave(torch.arange(len(new)), counts)
    positions = torch.arange(len(owner)) - cu_q[:-1].long()[owner] + (totals - counts)[owner]
    pages = block_table.long()[owner, positions // block_size]
    phase: Phase = "mixed"
    if max(new) == 1:
        phase = "decode"
    elif min(new) > 1 or all(n == t for n, t in zip(new, total, strict=True)):
        phase = "prefill"
    return StepMeta(
        phase=phase,
        cu_q=cu_q.to(device),
        max_q=max(new),
        kv_len=totals.to(torch.int32).to(device),
        max_kv=max(total),
        block_table=block_table.to(torch.int32).contiguous().to(device),
        slot_map=(pages * block_size + positions % block_size).to(device),
        positions=positions.to(device),
        block_size=block_size,
    )
