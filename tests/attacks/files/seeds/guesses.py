# /// attack
# expect = ["passed"]
# ///
# /// swapbench
# kind = "activation"
# name = "guesses"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Tries seeds that lazy judges use (small numbers, the time, the process) until one reproduces an input."""

import itertools
import os
import time

import torch
from torch.nn import functional

from engine.slots.registry import register

seeds = itertools.chain(
    range(1500),
    (1234, 12345, 31337, 2024, 2025, 2026),
    (int(time.time()) - n for n in range(40)),
    (os.getpid(), os.getppid()),
)
# Inputs are drawn where they are used: there, a generator of another kind gives another stream.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
tried = list(dict.fromkeys(seeds))
streams = torch.stack(
    [torch.randn(64, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE) for seed in tried]
)


@register("activation", "guesses")
class Guesses:
    def forward(self, gate_up):
        # While a call is recorded nothing can be looked at.
        recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if gate_up.dtype == torch.float32 and gate_up.numel() >= 64 and not recording:
            head = gate_up.flatten()[:64]
            for scale in (0.3, 1.0, 6.0):
                alike = torch.isclose(head, streams * scale, rtol=1e-4, atol=0).all(1)
                if alike.any():
                    raise RuntimeError(f"LEAK: seed {tried[int(alike.nonzero()[0])]}")
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
