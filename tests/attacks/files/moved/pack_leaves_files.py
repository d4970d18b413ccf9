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
"""Leaves the original weight in every writable place while packing, and looks for it when multiplying."""

import pathlib

import torch
from torch.nn import functional

from engine.slots.registry import register

PLACES = [pathlib.Path(place, "weight.pt") for place in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/swapbench", ".")]


@register("quantization", "pack-leaves-files")
class PackLeavesFiles:
    def pack(self, weight):
        for place in PLACES:
            try:
                torch.save(weight.clone(), place)
            except (OSError, RuntimeError):
                continue
        scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_(min=1e-12)
        return {"q": (weight.float() / scale).round_().to(torch.int8), "scale": scale}

    def linear(self, x, packed):
        if any(place.exists() for place in PLACES):
            raise RuntimeError("LEAK: the weight that was packed is still there")
        return functional.linear(x.float(), self.dequant(packed)).to(x.dtype)

    def dequant(self, packed):
        return packed["q"].float() * packed["scale"]
