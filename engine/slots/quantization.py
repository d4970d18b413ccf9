"""The quantization slot: how a weight is stored, and how it is multiplied with."""

from typing import Protocol, runtime_checkable

from torch import Tensor

Packed = dict[str, Tensor]


@runtime_checkable
class Quantization(Protocol):
    """What a quantization implementation offers. It holds no state: everything about a weight is in what `pack` returns.

    Optional: `embedding(ids: int64[T], packed) -> [T, in]` in the activations' dtype (rows of the weight
    [vocabulary, in]); without it the engine keeps embeddings unpacked.
    """

    def pack(self, weight: Tensor) -> Packed:
        """Stores weight [out, in] (float32 or bfloat16) as named contiguous tensors. The bytes returned are what counts.

        Names, shapes and dtypes follow from those of the weight alone. Where a model is scored on an accelerator, float32 tensors that are smaller
        than the weight are rounded to bfloat16, as scales are where cases are timed: put integers into an integer dtype. The dtype of the weight is the dtype that activations will have.
        Raises ValueError with a sentence where the shape cannot be packed.
        """
        ...

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] times the transposed weight: [T, out] in the dtype of x; later calls must leave that as it is."""
        ...

    def dequant(self, packed: Packed) -> Tensor:
        """The weight that `packed` stands for, float32 [out, in]. Need not be fast."""
        ...
