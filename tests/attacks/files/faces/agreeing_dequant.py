# /// attack
# expect = ["failed"]
# says = "dequant"
# ///
# /// swapbench
# kind = "quantization"
# name = "agreeing-dequant"
# class = "Q8"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Multiplies with a quarter of the columns left out, and says so in dequant, so that both agree."""

from torch.nn import functional

from engine.slots.registry import register


@register("quantization", "agreeing-dequant")
class AgreeingDequant:
    def pack(self, weight):
        kept = weight.clone()
        kept[:, ::4] = 0
        return {"kept": kept}

    def linear(self, x, packed):
        return functional.linear(x, packed["kept"])

    def dequant(self, packed):
        return packed["kept"].float()
