"""Digests of what the judge drew: two runs from one seed had the same inputs, bit by bit, where their digests are the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from engine.slots.header import Header
from engine.slots.kind import Environment

INPUTS_ARTIFACT = "inputs.json"
FOLDED_FROM = 64 * 1024**2
"""Bytes of a tensor on the accelerator from which on it is folded there: bringing a case's gigabytes to the processor takes longer than its calls."""
WIDTH = 4096
FOLDED_AT_ONCE = 2048
"""Words of eight bytes in a row of a fold, and rows that are taken at a time."""


class Drawn(msgspec.Struct, frozen=True):
    """What one implementation's inputs were drawn for, and the digest of each set by its name: SUITE/CASE/held, SUITE/CASE/call, integration/texts."""

    header: dict[str, Any]
    environment: dict[str, Any]
    digests: dict[str, str]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, in the order of the names; of a large tensor on the accelerator over its fold."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().contiguous().view(-1)
        if flat.is_cuda and flat.nbytes >= FOLDED_FROM:
            flat = fold(flat)
        flat = flat.cpu()
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def fold(tensor: Tensor) -> Tensor:
    """int64[WIDTH + rest]: the bytes of a flat tensor as words in rows of WIDTH, summed over the rows modulo 2^64, each row times an odd
    number of its own; then the bytes that fill no row, one a word.

    Who changes one word, or exchanges two rows, changes the fold. It tells whether two draws from one seed are the same, and is no
    protection against somebody who could choose the bytes: nobody does, they come from the seed.
    """
    raw = tensor.view(torch.uint8)
    rows = len(raw) // (8 * WIDTH)
    words = raw[: rows * 8 * WIDTH].view(torch.int64).view(rows, WIDTH)
    total = torch.zeros(WIDTH, dtype=torch.int64, device=raw.device)
    for first in range(0, rows, FOLDED_AT_ONCE):
        part = words[first : first + FOLDED_AT_ONCE]
        place = torch.arange(first, first + len(part), dtype=torch.int64, device=raw.device)
        # Knuth's multiplicative hashing: 2^64 over the golden ratio, as a signed number; made odd.
        factor = ((place + 1) * -7046029254386353131) | 1
        total += (part * factor[:, None]).sum(0)
    return torch.cat([total, raw[rows * 8 * WIDTH :].long()])


def drawn(header: Header, environment: Environment, digests: Mapping[str, str]) -> Drawn:
    """The record of an implementation's inputs."""
    return Drawn(msgspec.to_builtins(header), msgspec.to_builtins(environment), dict(digests))


def artifact(path: str, name: str) -> str:
    """The name of an outcome's artifact that belongs to one slot file: activation-plain-inputs.json."""
    file = Path(path)
    return f"{file.parent.name}-{file.stem}-{name}"
