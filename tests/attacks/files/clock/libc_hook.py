# /// attack
# expect = ["passed", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "libc-hook"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Overwrites libc's clock_gettime in memory (x86-64) so that every clock of the process stands still, below all of Python."""

import ctypes
import mmap
import platform

from torch.nn import functional

from engine.slots.registry import register

if platform.machine() == "x86_64":
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.cast(libc.clock_gettime, ctypes.c_void_p).value
    page = address & ~(mmap.PAGESIZE - 1)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), 7) == 0:
        ctypes.memmove(address, b"\x31\xc0\xc3", 3)  # xor eax, eax; ret


@register("activation", "libc-hook")
class LibcHook:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
