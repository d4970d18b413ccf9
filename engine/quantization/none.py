# /// swapbench
# kind = "quantization"
# name = "none"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# embedding = true
# deterministic = true
# summary = "The weight as it is."
# ///
"""The default quantization: none."""

from torch import Tensor
from torch.nn import functional

from engine.slots.quantization import Packed
from engine.slots.registry import register


@register("quantization", "none")
class Unquantized:
    """Keeps the weight in its own dtype."""

    def pack(self, weight: Tensor) -> Packed:
        """Returns the weight itself; nothing is copied."""
        return {"weight": weight}

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]."""
        return functional.linear(x, packed["weight"])

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """ids int64[T] -> rows [T, in]."""
        return functional.embedding(ids, packed["weight"])

    def dequant(self, packed: Packed) -> Tensor:
        """The weight in float32."""
        return packed["weight"].float()
