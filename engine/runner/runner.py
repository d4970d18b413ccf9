"""The model on its device with its KV cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.models.transformer import Forward
from engine.runner.graphs import DecodeGraphs
from engine.runner.inputs import StepInputs
from engine.sampler import Draw, sample
from engine.scheduler import Scheduled
from engine.slots.attention import StepMeta
from engine.slots.kind import TensorSpec


class Runner:
    """Owns one KV cache per layer and turns scheduled steps into hidden states and tokens.

    With `ahead` > 0, decode steps are recorded as CUDA graphs that may run that many tokens ahead of the host.
    """

    def __init__(self, forward: Forward, pages: int, block_size: int, ahead: int = 0) -> None:
        self.forward = forward
        self.block_size = block_size
        self.device = forward.model.device
        self.kv = allocate(forward, pages, block_size)
        self.inputs = StepInputs(block_size, self.device)
        self.meta: StepMeta
        self.graphs = DecodeGraphs(forward, self.kv, block_size, ahead) if ahead else None

    def hidden(self, step: Sequence[Scheduled]) -> Tensor:
        """Hidden states [T, hidden] of a step's new tokens; their keys and values are in the cache afterwards."""
        ids, meta = self.inputs.of(step)
        self.meta = meta
        for attention in self.forward.planned:
            attention.plan(meta)
        return self.forward(ids, meta, self.kv, fixed=len(ids) == 1)

    def offered(self) -> set[int]:
        """Pages that the attention of every layer lets go of after the last step (see `Attention.evict`)."""
        layers = zip(self.forward.attention, self.kv, strict=True)
        return set.intersection(*(set(a.evict(kv, self.meta).tolist()) for a, kv in layers))

    def tokens(self, step: Sequence[Scheduled], ahead: int = 1) -> list[list[int]]:
        """Computes a step and draws the next token of each sequence that has come to its last one.

        Returns a list per entry of `step`: empty where nothing was to be drawn; of `ahead` tokens in a decode step that
        the scheduler has reserved pages for.
        """
        if self.graphs is not None and all(s.new == 1 and s.samples for s in step):
            return self.graphs.tokens(step, ahead)
        hidden = self.hidden(step)
        drawing = [s for s in step if s.samples]
        if not drawing:
            return [[] for _ in step]
        if len(drawing) != hidden.shape[0]:
            ends, at = [], -1
            for scheduled in step:
                at += scheduled.new
                if scheduled.samples:
                    ends.append(at)
            hidden = hidden[torch.tensor(ends, device=self.device)]
        logits = self.forward.logits(hidden, fixed=len(hidden) == 1)
        draw = Draw.of([s.sequence.sampling for s in drawing], logits.shape[-1], self.device)
        positions = (
            None if draw is None else torch.tensor([len(s.sequence.tokens) for s in drawing], device=self.device)
        )
        drawn = sample(logits, draw, positions).tolist()
        if len(drawn) == len(step):
            return [[token] for token in drawn]
        each = iter(drawn)
        return [[next(each)] if s.samples else [] for s in step]


def kv_specs(forward: Forward, pages: int, block_size: int) -> list[TensorSpec]:
    """The storage that each layer's attention asks for."""
    dtype = str(forward.model.dtype).removeprefix("torch.")
    return [attention.kv_spec(pages, block_size, dtype) for attention in forward.attention]


def allocate(forward: Forward, pages: int, block_size: int) -> list[Tensor]:
    """One zeroed cache per layer, or what the attention's own `allocate` returns."""
    caches: list[Tensor] = []
    for layer, (attention, spec) in enumerate(
        zip(forward.attention, kv_specs(forward, pages, block_size), strict=True)
    ):
        own = getattr(attention, "allocate", None)
        device = forward.model.device
        if own is not None:
            caches.append(own(f"kv.{layer}", spec, device))
        else:
            caches.append(torch.zeros(spec.shape, dtype=spec.torch_dtype, device=device))
    return caches
