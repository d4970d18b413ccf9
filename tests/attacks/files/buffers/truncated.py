# /// attack
# expect = ["passed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "truncated"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Keeps the descriptors of shared buffers before the host closes them, and shrinks, punches, grows and seals them under the judge."""

import contextlib
import ctypes
import fcntl
import os

from torch.nn import functional

from engine.slots.registry import register
from workers.host.mapping import Mappings

libc = ctypes.CDLL(None, use_errno=True)
original = Mappings.map


def keep(self, buffers, fds):
    copies = [(buffer, os.dup(fd)) for buffer, fd in zip(buffers, fds)]
    original(self, buffers, fds)
    for buffer, fd in copies:
        for size in (0, buffer.nbytes // 2, 2 * buffer.nbytes):
            with contextlib.suppress(OSError):
                os.ftruncate(fd, size)
                raise RuntimeError("LEAK: a shared buffer was resized")
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x8)
            raise RuntimeError("LEAK: a shared buffer was sealed against the judge")
        if not buffer.writable and libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)) == 0:
            raise RuntimeError("LEAK: a hole was punched into an input")
        os.close(fd)


Mappings.map = keep


@register("activation", "truncated")
class Truncated:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
