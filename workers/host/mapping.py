"""The host's view of the judge's buffers."""

import mmap
import os
import warnings

import torch
from torch import Tensor

from workers import vmm
from workers.wire import Buffer, Region, WireError


class Mappings:
    """The shared buffers that this host has mapped, by the judge's number for them."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
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
                protection = mmap.PROT_READ | (mmap.PROT_WRITE if buffer.writable else 0)
                # Pages are there already; populating maps them in one go instead of by a fault for each.
                self._maps[buffer.id] = mmap.mmap(
                    fd, max(buffer.nbytes, 1), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=protection
                )
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "The given buffer is not writable": that is the point.
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
        """Forgets buffers. One whose tensors are still referred to stays mapped until they go.

        Not closed here: a tensor keeps its mapping alive but does not keep it from being closed, and reading it later would be SIGSEGV.
        """
        for number in numbers:
            self._on_device.pop(number, None)
            self._maps.pop(number, None)
