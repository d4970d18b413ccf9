"""Randomness with a name: every input that the judge draws can be drawn again from one seed."""

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

RESERVOIR = 1 << 23
"""Numbers in the reservoir; 32 MiB."""


class Source:
    """A key from which independent streams are derived by HMAC-SHA-256 over labels.

    `Source(seed).child("performance", case.name, pair, call)` gives the same stream wherever it is asked for, and
    knowing one stream tells nothing of another (HMAC is a pseudo-random function, RFC 2104).
    """

    def __init__(self, key: bytes, root: "Source | None" = None) -> None:
        self.key = key
        self._root = root or self
        self._counter = 0
        self._reservoir: torch.Tensor | None = None

    def child(self, *labels: str | int) -> "Source":
        """The stream named by `labels` under this key."""
        text = "\x1f".join(str(label) for label in labels)
        return Source(hmac.new(self.key, text.encode(), hashlib.sha256).digest(), self._root)

    def normals(self, count: int) -> torch.Tensor:
        """float32[count] on the CPU, standard normal: two stretches of one reservoir under the root key, at places and in a proportion drawn from this stream.

        Drawing a million numbers takes three times as long as many a call that they are the input of; adding them does not. A host that is asked
        often could put the reservoir together from single stretches, and look up what it has computed for it; of two in any proportion there is
        no table.
        """
        root = self._root
        # Not the size that the reservoir happens to have: the same stretch whatever else was drawn before, and a longer reservoir
        # begins with the shorter one.
        extent = max(RESERVOIR, 1 << (2 * count - 1).bit_length())
        if root._reservoir is None or root._reservoir.numel() < extent:
            key = hmac.new(root.key, b"reservoir", hashlib.sha256).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") & (2**63 - 1))
            root._reservoir = torch.randn(extent, generator=generator)
        first, second = (self.integer(0, extent - count) for _ in range(2))
        # Of independent normals, a * cos + b * sin is a normal again. Neither share is near nothing, else one stretch would stand there alone.
        angle = math.pi * (0.15 + 0.2 * self.integer(0, 1 << 30) / (1 << 30))
        mixed = root._reservoir[first : first + count] * math.cos(angle)
        return mixed.add_(root._reservoir[second : second + count], alpha=math.sin(angle))

    def generator(self) -> torch.Generator:
        """A CPU generator; each call gives the next one of this stream."""
        self._counter += 1
        digest = hmac.new(self.key, f"generator:{self._counter}".encode(), hashlib.sha256).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") & (2**63 - 1))

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        self._counter += 1
        digest = hmac.new(self.key, f"integer:{self._counter}".encode(), hashlib.sha256).digest()
        return low + int.from_bytes(digest[:16], "big") % (high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.integer(0, len(items) - 1)]
