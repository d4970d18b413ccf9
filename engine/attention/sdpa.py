# /// swapbench
# kind = "attention"
# name = "sdpa"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# deterministic = true
# trainable = true
# summary = "PyTorch's scaled dot-product attention, one sequence after the other over its pages."
# ///
"""The default attention: nothing but PyTorch's own kernels, on any device."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from engine.slots.attention import AttentionShape, StandardKV, StepMeta
from engine.slots.registry import register

# cuDNN's attention, which PyTorch prefers on Hopper, builds a plan for every length that it has not seen, for the 43 ms of about a thousand
# calls of a decoding sequence on an H100 (docs/h100/lengths.json); such a sequence has a new length with each token. Over long prompts it is
# about twice as fast as the flash kernel (8k tokens: 1.2 against 2.6 ms a layer), which should pay for a plan over the layers of a model. And the flash
# kernel takes no mask.
PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PLANNED = [SDPBackend.CUDNN_ATTENTION, *PLANLESS]
LONG = 16384
"""New tokens of one sequence from which on a plan pays."""


@register("attention", "sdpa")
class Sdpa(StandardKV):
    """Gathers each sequence's pages into one run of keys and values and calls SDPA on it."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.new: list[int] = []
        self.total: list[int] = []
        self.places: list[slice | Tensor] = []

    def plan(self, meta: StepMeta) -> None:
        """Reads the lengths and the pages back to the host, once for all layers."""
        self.total = meta.kv_len.tolist()
        self.new = [1] * len(self.total) if meta.max_q == 1 else meta.cu_q.diff().tolist()
        self.places = []
        size = meta.block_size
        for row, (pages, total) in enumerate(zip(meta.block_table.tolist(), self.total, strict=True)):
            used, first = -(-total // size), pages[0]
            # Pages in a row, which a fresh cache hands out, are read where they lie; others are gathered.
            in_a_row = pages[:used] == list(range(first, first + used))
            self.places.append(slice(first * size, first * size + total) if in_a_row else meta.block_table[row, :used])

    def forward(self, q: Tensor, k: Tensor, v: Tensor, kv: Tensor, meta: StepMeta) -> Tensor:
        """Returns [T, q_heads, head_dim]."""
        with among(PLANLESS, q):
            return torch.cat(self.each(q, kv, meta))

    def each(self, q: Tensor, kv: Tensor, meta: StepMeta) -> list[Tensor]:
        """[new, q_heads, head_dim] for each sequence."""
        outputs = []
        in_a_row = kv.flatten(1, 2)
        for queries, new, total, place in zip(q.split(self.new), self.new, self.total, self.places, strict=True):
            kept = in_a_row[:, place] if isinstance(place, slice) else kv[:, place].flatten(1, 2)[:, :total]
            keys, values = kept.transpose(1, 2).unsqueeze(1).to(q.dtype)
            mask = None if new == 1 or new == total else self.mask(new, total, q.device)
            if self.shape.window is not None and total > self.shape.window:
                mask = self.mask(new, total, q.device)
            with nullcontext() if mask is None and new < LONG else among(PLANNED, q):
                attended = scaled_dot_product_attention(
                    queries.transpose(0, 1)[None],
                    keys,
                    values,
                    attn_mask=mask,
                    is_causal=mask is None and new > 1,
                    scale=self.shape.scale,
                    enable_gqa=self.shape.q_heads != self.shape.kv_heads,
                )
            outputs.append(attended[0].transpose(0, 1))
        return outputs

    def mask(self, new: int, total: int, device: torch.device) -> Tensor:
        """bool[new, total]: which position each new token may read."""
        query = torch.arange(total - new, total, device=device)[:, None]
        key = torch.arange(total, device=device)
        allowed = key <= query
        if self.shape.window is not None:
            allowed &= key > query - self.shape.window
        return allowed


def among(kernels: list[SDPBackend], q: Tensor) -> AbstractContextManager[None]:
    """Has SDPA choose among these kernels on CUDA; elsewhere there is nothing to choose."""
    return sdpa_kernel(kernels) if q.is_cuda else nullcontext()
