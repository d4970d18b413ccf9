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


class Drawn(msgspec.Struct, frozen=True):
    """What one implementation's inputs were drawn for, and the digest of each set by its name: SUITE/CASE/held, SUITE/CASE/call, integration/texts."""

    header: dict[str, Any]
    environment: dict[str, Any]
    digests: dict[str, str]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, dtypes, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def drawn(header: Header, environment: Environment, digests: Mapping[str, str]) -> Drawn:
    """The record of an implementation's inputs."""
    return Drawn(msgspec.to_builtins(header), msgspec.to_builtins(environment), dict(digests))


def artifact(path: str, name: str) -> str:
    """The name of an outcome's artifact that belongs to one slot file: activation-plain-inputs.json."""
    file = Path(path)
    return f"{file.parent.name}-{file.stem}-{name}"
