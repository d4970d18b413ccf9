"""Draws follow the distribution that was asked for, and depend on nothing but seed, position and logits."""

from typing import Any

import pytest
import torch

from engine.sampler import Draw, Sampling, SamplingError, gumbel, restrict, sample

CPU = torch.device("cpu")


def draw(logits: torch.Tensor, samplings: list[Sampling], positions: list[int]) -> list[int]:
    rows = logits.expand(len(samplings), -1)
    return sample(rows, Draw.of(samplings, logits.shape[-1], CPU), torch.tensor(positions)).tolist()


def kept(logits: list[float], **options: float) -> list[int]:
    sampling = Sampling(temperature=1.0, **options)  # type: ignore[arg-type]
    made = Draw.of([sampling], len(logits), CPU)
    assert made is not None
    return restrict(torch.tensor([logits]), made)[0].isfinite().nonzero()[:, 0].tolist()


def test_greedy_needs_no_randomness() -> None:
    assert Draw.of([Sampling(), Sampling()], 5, CPU) is None
    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), None, torch.tensor([4])).tolist() == [1]


def test_frequencies_are_those_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    count = 20_000
    drawn = draw(logits, [Sampling(temperature=0.7, seed=s) for s in range(count)], [5] * count)
    found = torch.bincount(torch.tensor(drawn), minlength=4) / count
    assert (found - (logits[0] / 0.7).softmax(-1)).abs().max() < 0.015


def test_positions_draw_independently() -> None:
    logits = torch.zeros(1, 8)
    drawn = torch.tensor(draw(logits, [Sampling(temperature=1.0, seed=3)] * 8000, list(range(8000))))
    pairs = torch.bincount(drawn[:-1] * 8 + drawn[1:], minlength=64) / 7999
    assert (pairs - 1 / 64).abs().max() < 0.008


def test_a_seed_draws_the_same_in_any_batch() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    mine = Sampling(temperature=1.0, seed=11)
    alone = draw(logits, [mine], [9])
    others = [Sampling(), Sampling(temperature=2.0, seed=5), mine, Sampling(temperature=1.0, top_k=3, seed=1)]
    assert draw(logits, others, [1, 2, 9, 3])[2] == alone[0]
    assert draw(logits, others, [1, 2, 9, 3])[0] == logits.argmax()


def test_large_and_negative_seeds_are_seeds() -> None:
    seeds = [0, 1, -1, 2**63, 2**64 - 1]
    logits = torch.zeros(1, 1000)
    drawn = draw(logits, [Sampling(temperature=1.0, seed=s) for s in seeds], [1] * 5)
    assert len(set(drawn[:4])) == 4
    assert drawn[2] == drawn[4], "-1 and 2**64 - 1 are the same 64 bits"


def test_gumbel_noise_is_gumbel_noise() -> None:
    noise = gumbel(torch.tensor([[1], [2]]), torch.tensor([[0], [0]]), 100_000)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(1.6449, abs=0.03)
    assert torch.corrcoef(noise)[0, 1].abs() < 0.02


def test_noise_is_finite_where_every_bit_is_one() -> None:
    # The 24 highest bits of this number are ones. Infinite noise would draw the token whatever its logit, and a NaN where
    # a restriction had left it out.
    assert gumbel(torch.tensor([[74]]), torch.tensor([[55]]), 1151)[0, 1150].isfinite()
    logits = torch.zeros(1, 1200)
    logits[0, 7] = 50.0
    assert draw(
        logits, [Sampling(temperature=1.0, seed=74), Sampling(temperature=1.0, seed=74, top_k=5)], [55, 55]
    ) == [7, 7]


def test_top_k_keeps_the_k_best() -> None:
    assert kept([0.0, 3.0, 1.0, 2.0], top_k=2) == [1, 3]
    assert kept([0.0, 3.0, 1.0, 2.0], top_k=99) == [0, 1, 2, 3]
    assert kept([0.0, 3.0, 1.0, 2.0], top_k=2**70) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, top_p=0.5) == [0]
    assert kept(logits, top_p=0.51) == [0, 1]
    assert kept(logits, top_p=0.9) == [0, 1, 2]
    assert kept(logits, top_p=1e-6) == [0], "the best always stays"


def test_min_p_keeps_what_is_probable_enough_beside_the_best() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert kept(logits, min_p=0.29) == [0, 1, 2]
    assert kept(logits, min_p=1.0) == [0]


def test_restrictions_apply_one_after_the_other() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    # Of the two best, the first has 4/7 of what is left.
    assert kept(logits, top_k=2, top_p=0.56) == [0]
    assert kept(logits, top_k=2, top_p=0.58) == [0, 1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"top_p": None}, "top_p is None; it must be a number"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"top_k": None}, "top_k is None; it must be a whole number"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    ],
)
def test_parameters_out_of_range_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(SamplingError, match=word):
        Sampling(**options)
