"""From logits to next tokens.

Randomness is a function of (seed, position, token): a request with a seed draws the same tokens whatever it is batched
with, and a CUDA graph needs no generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = 128
"""Into how many parts a row of logits is divided where a GPU searches it."""


class SamplingError(ValueError):
    """A sampling parameter is out of its range, or no number; `str(error)` names it."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature 0 is greedy. top_k 0 keeps all. top_p keeps the smallest set of most probable tokens whose probabilities
    sum to at least top_p; min_p those at least min_p times as probable as the most probable one. Applied in that order.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p"):
            if not isinstance(getattr(self, name), Real):
                raise SamplingError(f"{name} is {getattr(self, name)!r}; it must be a number.")
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), Integral) and (name, getattr(self, name)) != ("seed", None):
                raise SamplingError(f"{name} is {getattr(self, name)!r}; it must be a whole number.")
        if not 0.0 <= self.temperature < float("inf"):
            raise SamplingError(f"temperature is {self.temperature}; it must be 0 (greedy) or above.")
        if self.top_k < 0:
            raise SamplingError(f"top_k is {self.top_k}; it must be 0 (all) or above.")
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not 0.0 <= self.min_p <= 1.0:
            raise SamplingError(f"min_p is {self.min_p}; it must be between 0 and 1.")

    def seeded(self, seed: int) -> "Sampling":
        """These parameters with a seed: their own, or else `seed`."""
        return self if self.seed is not None else replace(self, seed=seed)


class Draw(NamedTuple):
    """The sampling parameters of a batch as tensors, each [n, 1]; `filtered` says whether any row restricts its tokens."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    filtered: bool

    @staticmethod
    def of(samplings: Sequence[Sampling], vocab: int, device: torch.device) -> "Draw | None":
        """None where all are greedy."""
        if not any(s.temperature for s in samplings):
            return None

        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)[:, None]

        return Draw(
            temperature=column([s.temperature for s in samplings]),
            top_k=column([min(s.top_k or vocab, vocab) for s in samplings], torch.int64),
            top_p=column([s.top_p for s in samplings]),
            min_p=column([s.min_p for s in samplings]),
            seed=column([_signed(int(s.seed or 0)) for s in samplings], torch.int64),
            filtered=any(s.top_k or s.top_p < 1 or s.min_p for s in samplings),
        )


def sample(logits: Tensor, draw: Draw | None, positions: Tensor | None) -> Tensor:
    """`logits` float32 [n, vocab], `positions` int64 [n] of the tokens to come -> int64 [n]; without `draw`, greedy."""
    greedy = best(logits)
    if draw is None or positions is None:
        return greedy
    scaled = logits / draw.temperature.clamp(min=1e-6)
    if draw.filtered:
        scaled = restrict(scaled, draw)
    noisy = scaled + gumbel(draw.seed, positions[:, None], logits.shape[-1])
    return torch.where(draw.temperature[:, 0] == 0, greedy, best(noisy))


def best(logits: Tensor) -> Tensor:
    """The first index of the largest of each row, int64 [n].

    PyTorch has one block of a GPU's threads search a row: the parts of a long one are searched side by side instead.
    """
    vocab = logits.shape[-1]
    if not logits.is_cuda or vocab % PARTS:
        return logits.argmax(-1)
    values, places = logits.unflatten(-1, (PARTS, -1)).max(-1)
    part = values.argmax(-1, keepdim=True)
    return (places.gather(-1, part) + part * (vocab // PARTS))[:, 0]


def restrict(logits: Tensor, draw: Draw) -> Tensor:
    """`logits` [n, vocab] with -inf for the tokens that top_k, top_p and min_p leave out; the best one always stays."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(rank >= draw.top_k, float("-inf"))
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    out = ((before >= draw.top_p) | (probabilities < draw.min_p * probabilities[:, :1])) & (rank > 0)
    return torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill(out, float("-inf")))


def gumbel(seed: Tensor, position: Tensor, vocab: int) -> Tensor:
    """float32 [n, vocab] of standard Gumbel noise, fixed by `seed` and `position` (int64 [n, 1]).

    Adding it to logits and taking the largest draws from their softmax (Gumbel 1954; Maddison et al. 2014). Bits by
    the finaliser of SplitMix64 (Steele et al. 2014) over a counter.
    """
    token = torch.arange(vocab, device=seed.device)
    bits = _mix(_mix(seed * _signed(0x9E3779B97F4A7C15) + position) + token * _signed(0xD1B54A32D192ED03))
    # 23 bits and a half are what float32 holds exactly; with one bit more the largest would round to 1, whose noise is infinite.
    uniform = ((bits >> 41 & 0x7FFFFF).float() + 0.5) * 2.0**-23
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    # torch's >> keeps the sign of int64; the mask makes it the logical shift of the original.
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ (x >> 31 & 0x1FFFFFFFF)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
