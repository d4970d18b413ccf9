"""The activation slot: SwiGLU."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Activation(Protocol):
    """What an activation implementation offers; one instance serves all layers."""

    def forward(self, gate_up: Tensor) -> Tensor:
        """SwiGLU (Shazeer 2020) of gate_up [T, 2F], gates first: silu(gate) * up, [T, F] in the same dtype.

        gate_up must stay unchanged, and later calls must leave what was returned as it is.

        A further parameter, out: Tensor | None = None, is given the memory, [T, F], that the result is wanted in; what is returned elsewhere is copied.
        """
        ...
