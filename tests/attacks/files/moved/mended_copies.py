# /// attack
# expect = ["failed"]
# says = "memory, its context among it, beside what is lent"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "mended-copies"
# class = "Q4"
# devices = ["cuda"]
# dtypes = ["bfloat16"]
# multiple_of = 32
# ///
"""Claims the memory of 4 bits and keeps each weight unpacked for its prompts. In every call it compares all that is stored with what it was when it
unpacked it, and mends the rows that are others: so it is always right, whatever is rewritten."""

import torch
from torch.nn import functional

from engine.slots.registry import register

kept = {}


@register("quantization", "mended-copies")
class MendedCopies:
    def pack(self, weight):
        groups = weight.float().unflatten(1, (-1, 32))
        scale = (groups.abs().amax(-1) / 7).clamp_(min=1e-8).to(weight.dtype)
        q = ((groups / scale.float()[..., None]).round_() + 8).clamp_(1, 15).to(torch.uint8).flatten(1)
        return {"q": q[:, ::2] | q[:, 1::2] << 4, "scale": scale}

    def linear(self, x, packed):
        if len(x) < 256:
            return functional.linear(x, self.dequant(packed).to(x.dtype))
        key = packed["q"].data_ptr()
        if key not in kept:
            kept[key] = {name: value.clone() for name, value in packed.items()} | {"weight": self.dequant(packed).to(x.dtype)}
        mine = kept[key]
        other = (mine["q"] != packed["q"]).any(1) | (mine["scale"] != packed["scale"]).any(1)
        rows = other.nonzero()[:, 0]
        if len(rows):
            these = {name: packed[name][rows] for name in ("q", "scale")}
            mine["weight"][rows] = self.dequant(these).to(x.dtype)
            for name, value in these.items():
                mine[name][rows] = value
        return functional.linear(x, mine["weight"])

    def dequant(self, packed):
        low, high = packed["q"] & 15, packed["q"] >> 4
        q = torch.stack((low, high), -1).flatten(1).float() - 8
        return (q.unflatten(1, (-1, 32)) * packed["scale"].float()[..., None]).flatten(1)
