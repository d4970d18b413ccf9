"""The host's view of the judge's buffers."""

import ctypes
import mmap
import os
from functools import lru_cache

import torch
from torch import Tensor

from workers import vmm
from workers.wire import Buffer, Region, WireError

_library = ctypes.CDLL(None, use_errno=True)
_map, _unmap = _library.mmap, _library.munmap
_map.restype = ctypes.c_void_p
_map.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FAILED = ctypes.c_void_p(-1).value


class Memory(ctypes.Array[ctypes.c_char]):
    """Shared memory that stays mapped for as long as anything refers to this.

    Python's own mmap asks for the file's size, keeps a descriptor, and says of memory that cannot be written to that it cannot, of which
    PyTorch then warns for each tensor: as long as a short call takes, while the clock runs.
    """

    _type_ = ctypes.c_char
    _length_ = 1

    def __del__(self) -> None:
        _unmap(ctypes.addressof(self), len(self))


@lru_cache(maxsize=1024)
def _memory_of(nbytes: int) -> type[Memory]:
    return type("Memory", (Memory,), {"_length_": nbytes})


def mapped(fd: int, nbytes: int, writable: bool) -> Memory:
    """The memory of a descriptor. What is written to one that is not `writable` ends this process with SIGSEGV. Raises OSError."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    # Pages are there already; populating maps them in one go instead of by a fault for each.
    address = _map(None, nbytes, protection, mmap.MAP_SHARED | mmap.MAP_POPULATE, fd, 0)
    if address == FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return _memory_of(nbytes).from_address(address)


class Mappings:
    """The shared buffers that this host has mapped, by the judge's number for them."""

    def __init__(self) -> None:
        self._maps: dict[int, Memory] = {}
        self._on_device: dict[int, dict[torch.dtype, Tensor]] = {}

    def map(self, buffers: list[Buffer], fds: list[int]) -> None:
        """Maps buffers whose descriptors came with a message, and closes the descriptors."""
        try:
            if len(buffers) != len(fds):
                raise WireError(f"{len(buffers)} buffers came with {len(fds)} descriptors.")
            for buffer, fd in zip(buffers, fds, strict=True):
                if buffer.device == "cuda":
                    self._on_device[buffer.id] = {torch.uint8: vmm.take(fd, buffer.nbytes).bytes()}
                    continue
                self._maps[buffer.id] = mapped(fd, max(buffer.nbytes, 1), buffer.writable)
        finally:
            for fd in fds:
                os.close(fd)

    def tensor(self, region: Region) -> Tensor:
        """The tensor of a region. A write to one of a read-only buffer ends this process with SIGSEGV."""
        dtype = getattr(torch, region.dtype)
        count = 1
        for size in region.shape:
            count *= size
        if count == 0:
            device = "cuda" if region.buffer in self._on_device else "cpu"
            return torch.empty(region.shape, dtype=dtype, device=device)
        if region.buffer in self._on_device:
            return self._strided(self._on_device[region.buffer], region, dtype)
        flat = torch.frombuffer(self._maps[region.buffer], dtype=dtype, count=count, offset=region.offset)
        return flat.view(region.shape)

    @staticmethod
    def _strided(views: dict[torch.dtype, Tensor], region: Region, dtype: torch.dtype) -> Tensor:
        # One operation for each tensor of a call, since all of them happen while the clock runs.
        if dtype not in views:
            views[dtype] = views[torch.uint8].view(dtype)
        strides = []
        step = 1
        for size in reversed(region.shape):
            strides.append(step)
            step *= size
        return views[dtype].as_strided(region.shape, strides[::-1], region.offset // dtype.itemsize)

    def drop(self, numbers: list[int]) -> None:
        """Forgets buffers. One whose tensors are still referred to stays mapped until they go."""
        for number in numbers:
            self._on_device.pop(number, None)
            self._maps.pop(number, None)
