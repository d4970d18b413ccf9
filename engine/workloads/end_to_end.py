"""What serving looks like from outside: named sets of requests, and the figures that users feel.

TTFT is the time from submission to a request's first token, TPOT the mean time of each further one, both in seconds.
"""

import math
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.generate import Engine, Request


@dataclass(frozen=True)
class EndToEndWorkload:
    """`requests` prompts of `prompt` tokens, of which the first `shared` are the same for all, each continued by `new`."""

    name: str
    requests: int
    prompt: int
    new: int
    shared: int = 0


@dataclass(frozen=True)
class EndToEndFigures:
    """Medians and 95th percentiles over requests; throughput counts generated tokens; memory is the peak in bytes.

    `peak_bytes` is the device allocator's on CUDA and the process's resident memory on the CPU.
    """

    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    tokens_per_s: float
    prompt_tokens_per_s: float
    peak_bytes: int


CPU = (
    EndToEndWorkload("chat-1", requests=1, prompt=128, new=64),
    EndToEndWorkload("chat-8", requests=8, prompt=128, new=48),
    EndToEndWorkload("long-prompt", requests=1, prompt=2048, new=16),
    EndToEndWorkload("shared-prompt-8", requests=8, prompt=512, new=24, shared=480),
)
GPU = (
    EndToEndWorkload("chat-1", requests=1, prompt=512, new=256),
    EndToEndWorkload("chat-64", requests=64, prompt=512, new=256),
    EndToEndWorkload("long-prompt", requests=1, prompt=32000, new=64),
    EndToEndWorkload("shared-prompt-64", requests=64, prompt=4096, new=64, shared=4000),
)


def requests_for(workload: EndToEndWorkload, vocab: int, seed: int) -> list[Request]:
    """The workload's requests with random tokens; they run to their full length."""
    draw = random.Random(seed)
    start = [draw.randrange(vocab) for _ in range(workload.shared)]
    return [
        Request(
            start + [draw.randrange(vocab) for _ in range(workload.prompt - workload.shared)],
            max_tokens=workload.new,
            ignore_eos=True,
        )
        for _ in range(workload.requests)
    ]


def measure(engine: Engine, workload: EndToEndWorkload, seed: int = 0) -> EndToEndFigures:
    """Serves the workload once on a warm engine. Raises RuntimeError where a request was not served."""
    cuda = engine.model.device.type == "cuda"
    requests = requests_for(workload, engine.model.config.vocab, seed)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    completions = engine.generate(requests)
    span = time.perf_counter() - began
    failed = [completion.error for completion in completions if completion.error is not None]
    if failed:
        raise RuntimeError(f"{workload.name}: {len(failed)} of {len(completions)} requests failed: {failed[0]}")
    ttft = [completion.ttft for completion in completions]
    tpot = [completion.tpot for completion in completions]
    return EndToEndFigures(
        ttft_p50=statistics.median(ttft),
        ttft_p95=percentile(ttft, 0.95),
        tpot_p50=statistics.median(tpot),
        tpot_p95=percentile(tpot, 0.95),
        tokens_per_s=workload.requests * workload.new / span,
        prompt_tokens_per_s=workload.requests * workload.prompt / max(ttft),
        peak_bytes=torch.cuda.max_memory_allocated() if cuda else resident_peak_bytes(),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def resident_peak_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
