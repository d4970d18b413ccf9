"""Which of PyTorch's attention kernels a step is given to on a GPU."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PLANNED = [SDPBackend.CUDNN_ATTENTION, *PLANLESS]
VERY_LONG_PROMPT = 12288
CHUNK = 1024


def plan_pays(new: int) -> bool:
    """Whether cuDNN's kernel, which PyTorch prefers on Hopper, is worth its plan for `new` tokens without history or window (the flash kernel takes no mask).

    It takes about half the flash kernel's time, and 60 to 80 ms to plan for a length that it has not met. On an H100 that pays within one model of 38
    layers from 12k tokens on (docs/h100/lengths.json), and wherever a length comes again: prompts are cut into chunks of round lengths. A
    decoding sequence has a new length with each token.
    """
    return new >= VERY_LONG_PROMPT or new % CHUNK == 0


def among(kernels: list[SDPBackend], q: Tensor) -> AbstractContextManager[None]:
    """Has SDPA choose among these kernels on CUDA; elsewhere there is nothing to choose."""
    return sdpa_kernel(kernels) if q.is_cuda else nullcontext()
