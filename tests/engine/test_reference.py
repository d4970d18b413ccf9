"""The references against PyTorch's own operators, which were written by somebody else."""

import pytest
import torch
from torch.nn import functional

from engine.reference.activation import swiglu
from engine.reference.attention import attend, attention
from engine.reference.linear import linear
from engine.reference.normalization import rms_norm
from engine.reference.operators import causal_attention, softmax
from engine.slots.attention import AttentionShape, step_meta


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("new", "total"), [(1, 1), (1, 37), (9, 9), (9, 40)])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_of_one_sequence_is_sdpa_with_its_mask(
    new: int, total: int, heads: tuple[int, int], window: int | None
) -> None:
    q_heads, kv_heads = heads
    shape = AttentionShape(q_heads, kv_heads, 16, 0.3, window)
    q, k, v = drawn(new, q_heads, 16), drawn(kv_heads, total, 16, seed=1), drawn(kv_heads, total, 16, seed=2)
    query = torch.arange(total - new, total)[:, None]
    key = torch.arange(total)
    mask = (key <= query) & (key > query - (window or total + 1))
    wanted = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, scale=0.3, enable_gqa=True
    )[0].transpose(0, 1)
    assert torch.allclose(attend(q, k, v, shape) if window is None else paged(q, k, v, shape), wanted, atol=1e-5)
    assert torch.allclose(paged(q, k, v, shape), wanted, atol=1e-5)


def paged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """The same through a cache of scattered pages of 4."""
    total = k.shape[1]
    pages = -(-total // 4)
    table = torch.randperm(pages + 2, generator=torch.Generator().manual_seed(5))[None, :pages]
    kv = torch.full((2, pages + 2, 4, shape.kv_heads, shape.head_dim), 99.0)
    for position in range(total):
        kv[0, table[0, position // 4], position % 4] = k[:, position]
        kv[1, table[0, position // 4], position % 4] = v[:, position]
    return attention(q, kv, step_meta([len(q)], [total], table, 4), shape)


def test_long_prompts_are_taken_in_rows_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = AttentionShape(4, 2, 16, 0.25, 11)
    q, k, v = drawn(30, 4, 16), drawn(2, 50, 16, seed=1), drawn(2, 50, 16, seed=2)
    at_once = paged(q, k, v, shape)
    monkeypatch.setattr("engine.reference.attention.SCORES_AT_ONCE", {"cpu": 7 * 4 * 50})
    assert torch.allclose(paged(q, k, v, shape), at_once, atol=1e-6)


def test_normalization_is_rms_norm() -> None:
    x, residual, weight = drawn(5, 33), drawn(5, 33, seed=1), drawn(33, seed=2)
    y, hidden = rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(hidden, x + residual)
    assert torch.allclose(y, functional.rms_norm(x + residual, (33,), weight, 1e-5), atol=1e-6)
    assert torch.equal(rms_norm(x, None, weight, 1e-5)[1], x)


def test_swiglu_softmax_and_linear_are_pytorchs() -> None:
    values = drawn(6, 40) * 4
    assert torch.allclose(swiglu(values), functional.silu(values[:, :20]) * values[:, 20:], atol=1e-5)
    assert torch.allclose(softmax(values), values.softmax(-1), atol=1e-6)
    weight = drawn(7, 40, seed=3)
    assert torch.allclose(linear(values, weight), functional.linear(values, weight), atol=1e-4)


def test_causal_attention_aligns_the_last_query_with_the_last_key() -> None:
    q, k, v = drawn(1, 2, 3, 8), drawn(1, 2, 7, 8, seed=1), drawn(1, 2, 7, 8, seed=2)
    mask = torch.ones(3, 7, dtype=torch.bool).tril(4)
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)
    assert torch.allclose(causal_attention(q, k, v, 0.5), wanted, atol=1e-6)
