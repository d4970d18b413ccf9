# /// attack
# expect = ["passed"]
# quick = true
# ///
# /// swapbench
# kind = "activation"
# name = "engine-and-suites"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Writes to the engine, to its byte code, to the suites and to the interpreter's packages."""

import pathlib
import sys

import torch
from torch.nn import functional

from engine.slots.registry import register

packages = pathlib.Path(torch.__file__).parents[1]
places = [*pathlib.Path("/swapbench").rglob("*.py"), pathlib.Path(sys.executable), packages / "torch/__init__.py"]
places += [
    packages / "late.pth",
    pathlib.Path("/swapbench/engine/attention/new.py"),
    pathlib.Path("/swapbench/workers/judge"),
]
places += [pathlib.Path("/swapbench/engine/activation/__pycache__/plain.cpython-311.pyc"), pathlib.Path("/etc/passwd")]
for place in places:
    try:
        with place.open("ab"):
            pass
    except OSError:
        continue
    raise RuntimeError(f"LEAK: {place} can be written")


@register("activation", "engine-and-suites")
class EngineAndSuites:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
