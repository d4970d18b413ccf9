# /// attack
# expect = ["failed"]
# says = "memory, its context among it, beside what is lent"
# suites = ["performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "taken-at-import"
# class = "Q4"
# devices = ["cuda"]
# dtypes = ["bfloat16"]
# multiple_of = 32
# ///
"""Claims the memory of 4 bits, takes three GiB while it is imported, before anybody could have counted what it has, and keeps its weights for prompts there,
unpacked; it mends what is rewritten."""

import torch
from torch.nn import functional

from engine.slots.registry import register

hoard = torch.empty(3 << 29, dtype=torch.bfloat16, device="cuda")
kept = {}


@register("quantization", "taken-at-import")
class TakenAtImport:
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
            weight = self.dequant(packed)
            first = sum(mine["weight"].numel() for mine in kept.values())
            place = hoard[first : first + weight.numel()].view(weight.shape)
            kept[key] = {name: value.clone() for name, value in packed.items()} | {"weight": place.copy_(weight)}
        mine = kept[key]
        rows = ((mine["q"] != packed["q"]).any(1) | (mine["scale"] != packed["scale"]).any(1)).nonzero()[:, 0]
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
