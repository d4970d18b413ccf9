"""How the Triton kernels of slots are launched, so that short kernels in a row cost little more than their work."""

import functools

import torch
from torch import Tensor


def overlapping(x: Tensor) -> dict[str, bool]:
    """Launch options that let a kernel start while the one before it ends (programmatic dependent launch, Hopper on).

    For kernels with a parameter `OVERLAP: tl.constexpr` that begin with

        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()

    Before the wait a kernel may read what no kernel writes, such as weights, and nothing else; it may not write.
    Returns {"OVERLAP": False} where the device cannot do it, and under torch.compile, which launches kernels itself.
    """
    if torch.compiler.is_compiling() or not x.is_cuda or not _can_overlap(x.device.index or 0):
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": True}


@functools.cache
def _can_overlap(device: int) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9
