"""Memory that the judge owns and lends to a module host: sealed memfds (memfd_create(2), fcntl(2) "File Sealing").

The judge keeps a private copy of whatever it will compare with; what a host can map is never trusted.
"""

import fcntl
import mmap
import os
from collections.abc import Mapping
from itertools import count
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from engine.slots.kind import TensorSpec, bits
from workers.wire import Buffer, Region

ALIGNMENT = 64
F_SEAL_FUTURE_WRITE = 0x0010
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedBuffer:
    """A memfd of fixed size, mapped read-write here.

    A `writable` one may be changed by the host too, but not truncated: without that seal a host could shrink it under the
    judge, whose next read would end in SIGBUS. Any other refuses every later write, by whatever descriptor.
    """

    _numbers = count(1)

    def __init__(self, nbytes: int, writable: bool) -> None:
        self.number = next(self._numbers)
        self.nbytes = max(nbytes, 1)
        self.writable = writable
        self.fd = os.memfd_create("swapbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.nbytes)
            self.map = mmap.mmap(self.fd, self.nbytes, flags=mmap.MAP_SHARED)
        except BaseException:
            os.close(self.fd)
            raise
        seals = SEALED if writable else SEALED | F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)

    def describe(self) -> Buffer:
        return Buffer(self.number, self.nbytes, self.writable)

    def tensor(self, offset: int, spec: TensorSpec) -> Tensor:
        """The judge's own view of a region."""
        elements = spec.nbytes // spec.torch_dtype.itemsize
        if elements == 0:
            return torch.empty(spec.shape, dtype=spec.torch_dtype)
        # Made while a model runs in inference mode, it is written to outside of it, too.
        with torch.inference_mode(False):
            flat = torch.frombuffer(self.map, dtype=spec.torch_dtype, count=elements, offset=offset)
        return flat.view(spec.shape)

    def close(self) -> None:
        """Gives up the descriptor; the memory goes when the last mapping does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


def laid_out(specs: Mapping[str, TensorSpec], alignment: int) -> tuple[dict[str, int], int]:
    """The offset of each tensor in a buffer that holds them one after the other, and the bytes of the whole."""
    offsets: dict[str, int] = {}
    size = 0
    for name, spec in specs.items():
        offsets[name] = size
        size += -(-spec.nbytes // alignment) * alignment
    return offsets, size


class Lendable(Protocol):
    """A buffer that can be lent to a host, whichever memory it lies in."""

    number: int
    fd: int

    def describe(self) -> Buffer: ...
    def tensor(self, offset: int, spec: TensorSpec) -> Tensor: ...
    def close(self) -> None: ...


class Pack:
    """Named tensors laid out in one shared buffer."""

    buffer_type: ClassVar[type[Any]] = SharedBuffer
    alignment: ClassVar[int] = ALIGNMENT

    def __init__(self, specs: Mapping[str, TensorSpec], writable: bool) -> None:
        self.specs = dict(specs)
        offsets, size = laid_out(self.specs, self.alignment)
        self.buffer: Lendable = self.buffer_type(size, writable)
        self.regions = [
            Region(name, self.buffer.number, offsets[name], spec.shape, spec.dtype)  # type: ignore[arg-type]
            for name, spec in self.specs.items()
        ]
        self.views = {name: self.buffer.tensor(offsets[name], spec) for name, spec in self.specs.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], writable: bool = False) -> "Pack":
        """A pack that holds copies of `tensors`."""
        pack = cls({name: TensorSpec.of(tensor) for name, tensor in tensors.items()}, writable)
        for name, tensor in tensors.items():
            pack.views[name].copy_(tensor)
        return pack


# Quiet NaNs, with the payload bits left free for a random mark; bf16 and fp16 differ in where the mantissa ends.
_QUIET_NAN = {
    torch.float32: (0x7FC00000, 0x003FFFFF),
    torch.bfloat16: (0x7FC0, 0x003F),
    torch.float16: (0x7E00, 0x01FF),
    torch.float64: (0x7FF8000000000000, 0x0007FFFFFFFFFFFF),
}


class Poison:
    """Fills outputs before a call with a mark that no computation gives: a NaN with a random payload."""

    def __init__(self) -> None:
        self._mark = int.from_bytes(os.urandom(8), "big")

    def value(self, dtype: torch.dtype) -> int:
        """The mark as an integer of the width of `dtype`."""
        if dtype in _QUIET_NAN:
            base, mask = _QUIET_NAN[dtype]
            return base | (self._mark & mask)
        width = 8 * dtype.itemsize
        value = self._mark & ((1 << width) - 1)
        return value if width == 8 or value < 1 << (width - 1) else value - (1 << width)

    def fill(self, view: Tensor) -> None:
        bits(view).fill_(self.value(view.dtype))

    def count(self, tensor: Tensor) -> int:
        """How many elements still carry the mark (for floating-point tensors; any value of an integer may be true)."""
        if tensor.dtype not in _QUIET_NAN:
            return 0
        return int((bits(tensor) == self.value(tensor.dtype)).sum())
