# /// attack
# expect = ["failed"]
# suites = ["unit", "performance"]
# ///
# /// swapbench
# kind = "quantization"
# name = "tensor-float-32"
# class = "E"
# devices = ["cuda"]
# dtypes = ["float32"]
# ///
"""Lets the tensor cores round float32 products to 10 bits of mantissa."""

import torch

from engine.quantization.none import Unquantized
from engine.slots.registry import register

torch.backends.cuda.matmul.allow_tf32 = True
torch.set_float32_matmul_precision("medium")


@register("quantization", "tensor-float-32")
class TensorFloat32(Unquantized):
    pass
