# /// attack
# expect = ["passed"]
# ///
# /// swapbench
# kind = "activation"
# name = "made-writable"
# class = "E"
# devices = ["cpu"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Asks the kernel to make the mapped inputs writable. On an accelerator they are: there, whoever writes to them is found out afterwards (overwritten)."""

import ctypes
import mmap

from torch.nn import functional

from engine.slots.registry import register

libc = ctypes.CDLL(None, use_errno=True)


@register("activation", "made-writable")
class MadeWritable:
    def forward(self, gate_up):
        start = gate_up.data_ptr() & ~(mmap.PAGESIZE - 1)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE) == 0:
            raise RuntimeError("LEAK: the input was made writable")
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
