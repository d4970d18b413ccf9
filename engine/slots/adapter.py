"""The adapter slot: what a kind of hardware can do, and the operators that are best on it."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

Operator = Callable[..., Tensor]


@runtime_checkable
class Adapter(Protocol):
    """What an adapter offers.

    Operators by name, each optional; an absent one means the plain PyTorch operation:
        linear(x [T, in], weight [out, in]) -> [T, out]
        rms_norm(x [T, D], weight [D], eps: float) -> [T, D]
        softmax(x [T, N]) -> [T, N], over the last dimension
        swiglu(gate_up [T, 2F]) -> [T, F]
        attention(q [B, H, Tq, D], k [B, H, Tk, D], v [B, H, Tk, D], scale: float) -> [B, H, Tq, D], causal, the last
            query aligned with the last key
    Each returns the dtype of its first argument and leaves its arguments unchanged. A further parameter of rms_norm, softmax and swiglu, out: Tensor | None = None,
    is given the memory that the result is wanted in; what is returned elsewhere is copied.
    """

    def detect(self) -> str | None:
        """The name of the hardware where it is the one that this adapter is for, else None."""
        ...

    def peak_bytes_per_s(self) -> float:
        """Peak memory bandwidth of one device in bytes/s."""
        ...

    def peak_flops(self, dtype: str) -> float:
        """Peak floating-point operations per second of one device in `dtype`; a fused multiply-add counts two."""
        ...

    def operators(self) -> Mapping[str, Operator]:
        """The operators that the adapter binds."""
        ...
