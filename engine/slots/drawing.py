"""Inputs drawn from a `Source`, on the device where they are used."""

import math
from typing import Literal

import torch
from torch import Tensor

from engine.slots.source import Source

Distribution = Literal["normal", "outliers", "long-tailed", "repeated"]
LARGE = 1 << 15
"""Numbers from which on they come from the source's reservoir."""

DISTRIBUTIONS: tuple[Distribution, ...] = ("normal", "outliers", "long-tailed", "repeated")


def generator_on(source: Source, device: str) -> torch.Generator:
    """The next generator of the stream, on `device`: drawing billions of numbers on a CPU would outlast the attempt."""
    if device == "cpu":
        return source.generator()
    return torch.Generator(device).manual_seed(source.integer(0, 2**63 - 1))


def draw_tensor(
    source: Source,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str = "cpu",
    distribution: Distribution = "normal",
    scale: float = 1.0,
) -> Tensor:
    """A tensor of `shape` whose typical magnitude is `scale`.

    normal: independent. outliers: a few columns are 12 times larger, as a few channels of real activations are (Dettmers
    et al. 2022). long-tailed: each row has a magnitude of its own, log-normal. repeated: rows are copies of a few rows.
    """
    generator = generator_on(source, device)
    if distribution == "repeated" and len(shape) > 1:
        kinds = min(shape[0], 3)
        few = torch.randn((kinds, *shape[1:]), generator=generator, device=device) * scale
        order = torch.randint(kinds, (shape[0],), generator=generator, device=device)
        return few[order].to(dtype)
    count = math.prod(shape)
    if device == "cpu" and count >= LARGE:
        values = source.normals(count).view(shape)
    else:
        values = torch.randn(shape, generator=generator, device=device)
    if distribution == "outliers" and shape:
        few_columns = max(1, shape[-1] // 128)
        columns = torch.randperm(shape[-1], generator=generator, device=device)[:few_columns]
        values[..., columns] *= 12.0
    if distribution == "long-tailed" and len(shape) > 1:
        rows = torch.randn((shape[0],) + (1,) * (len(shape) - 1), generator=generator, device=device)
        values *= rows.mul_(0.7).exp_()
    return (values.mul_(scale) if scale != 1.0 else values).to(dtype)


def permutation(source: Source, count: int) -> list[int]:
    """A random order of range(count)."""
    return torch.randperm(count, generator=source.generator()).tolist()


def jitter(source: Source, sizes: list[int], spread: float, least: int = 1) -> list[int]:
    """Sizes drawn within ± `spread` of the given ones, rescaled so that their sum is about the same.

    A single size varies by at most 2 %, because nothing can make up for it.
    """
    if len(sizes) == 1:
        spread = min(spread, 0.02)
    steps = 1000
    drawn = [size * (1 + spread * source.integer(-steps, steps) / steps) for size in sizes]
    total = sum(drawn)
    factor = sum(sizes) / total if len(sizes) > 1 and total else 1.0
    return [max(least, round(size * factor)) if size else 0 for size in drawn]
