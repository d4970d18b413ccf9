# /// attack
# expect = ["failed", "tampered"]
# says = "what it was before"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "hidden-gpu-memory"
# class = "Q4"
# devices = ["cuda"]
# dtypes = ["bfloat16"]
# multiple_of = 32
# ///
"""Claims the bytes of 4 bits and keeps an unpacked copy on the GPU through an allocator that PyTorch's meter does not see."""

import ctypes

import torch
from torch.nn import functional

from engine.slots.registry import register

cuda = ctypes.CDLL("libcuda.so.1")
unpacked = {}


def hidden(like):
    """A copy of `like` in memory that the driver gave, not PyTorch."""
    pointer = ctypes.c_uint64()
    if cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(like.nbytes)):
        return like

    class View:
        __cuda_array_interface__ = {
            "shape": tuple(like.shape),
            "typestr": "<i2",
            "data": (pointer.value, False),
            "version": 3,
        }

    return torch.as_tensor(View(), device="cuda").view(torch.bfloat16).copy_(like)


@register("quantization", "hidden-gpu-memory")
class HiddenGpuMemory:
    def pack(self, weight):
        groups = weight.float().unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / 7).clamp_(min=1e-8).to(weight.dtype)
        q = ((groups / scale.float()[..., None]).round_() + 8).clamp_(1, 15).to(torch.uint8).flatten(1)
        return {"q": q[:, ::2] | q[:, 1::2] << 4, "scale": scale}

    def linear(self, x, packed):
        key = packed["q"].data_ptr()
        if key not in unpacked:
            unpacked[key] = hidden(self.dequant(packed).bfloat16())
        return functional.linear(x.bfloat16(), unpacked[key]).to(x.dtype)

    def dequant(self, packed):
        low, high = packed["q"] & 15, packed["q"] >> 4
        q = torch.stack((low, high), -1).flatten(1).float() - 8
        return (q.unflatten(1, (-1, 32)) * packed["scale"].float()[..., None]).flatten(1)
