# /// attack
# expect = ["passed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "frames-and-gc"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Searches the stack and the garbage collector for a tensor that already is the answer, and for the judge's objects."""

import gc
import sys

import torch
from torch.nn import functional

from engine.slots.registry import register


ANSWERED = []


@register("activation", "frames-and-gc")
class FramesAndGc:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        out = functional.silu(gate) * up
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return out
        # What it has answered before may well lie around.
        if any(torch.equal(out, before) for before in ANSWERED):
            return out
        frame = sys._getframe()
        things = gc.get_objects()
        while frame is not None:
            things += frame.f_locals.values()
            frame = frame.f_back
        for thing in things:
            if type(thing) is torch.Tensor and thing is not out and thing.shape == out.shape and len(out) > 1:
                if torch.allclose(thing.float(), out.float(), rtol=1e-2):
                    raise RuntimeError("LEAK: the expected output is in this process")
        for name in ("workers.judge.client", "workers.attempt", "workers.suites.session", "engine.slots.inprocess"):
            if name in sys.modules:
                raise RuntimeError(f"LEAK: {name} is in this process")
        ANSWERED.append(out.clone())
        return out
