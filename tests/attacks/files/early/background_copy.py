# /// attack
# expect = ["tampered", "failed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "background-copy"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Returns a tensor subclass that catches the host's copy_, learns the judge's buffer from it, and fills the buffer from a thread."""

import threading

import torch
from torch.nn import functional

from engine.slots.registry import register


class Later(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "copy_":
            target, source = args[0], args[1].as_subclass(torch.Tensor)
            threading.Timer(0.002, lambda: target.copy_(source)).start()
            return target
        return super().__torch_function__(function, types, args, kwargs or {})


@register("activation", "background-copy")
class BackgroundCopy:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return (functional.silu(gate) * up).as_subclass(Later)
