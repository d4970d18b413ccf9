# /// attack
# expect = ["passed"]
# ///
# /// swapbench
# kind = "quantization"
# name = "pack-leaves-files"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Leaves the original weight in every writable place while packing, for the process that multiplies, which should get nothing but what was packed."""

import os
import pathlib

import torch
from torch.nn import functional

from engine.slots.registry import register

PROCESS = os.urandom(8)
PLACES = [pathlib.Path(place, "weight") for place in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/swapbench", ".")]


@register("quantization", "pack-leaves-files")
class PackLeavesFiles:
    def pack(self, weight):
        for place in PLACES:
            try:
                place.write_bytes(PROCESS + weight.float().cpu().numpy().tobytes())
            except OSError:
                continue
        scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_(min=1e-12)
        return {"q": (weight.float() / scale).round_().to(torch.int8), "scale": scale}

    def linear(self, x, packed):
        for place in PLACES:
            if place.exists() and place.read_bytes()[:8] != PROCESS:
                raise RuntimeError("LEAK: the weight that another process packed is still there")
        return functional.linear(x.float(), self.dequant(packed)).to(x.dtype)

    def dequant(self, packed):
        return packed["q"].float() * packed["scale"]
