# /// attack
# expect = ["passed", "failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "looks-around"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Looks for signs of what it is being judged for: arguments, environment, stack, folders, clocks, load."""

import os
import pathlib
import sys
import traceback

from torch.nn import functional

from engine.slots.registry import register

WORDS = ("performance", "benchmark", "pytest", "integration", "pair", "confirm", "unit")


@register("activation", "looks-around")
class LooksAround:
    def forward(self, gate_up):
        seen = (
            " ".join(sys.argv) + " ".join(f"{k}={v}" for k, v in os.environ.items()) + "".join(traceback.format_stack())
        )
        seen += " ".join(str(path) for path in pathlib.Path("/swapbench").rglob("*"))
        for word in WORDS:
            if word in seen.lower():
                raise RuntimeError(f"LEAK: {word!r} can be seen from here")
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
