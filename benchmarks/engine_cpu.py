"""Measures the engine on the CPU beside transformers, in the same process: `python benchmarks/engine_cpu.py --out results.json`.

Decode at batch 1 in float32 (rounds of the two sides alternate, medians of all steps), what a decode step costs outside the
modules, and the end-to-end workloads.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from engine.generate import Engine
from engine.loader import load_model
from engine.models.transformer import by_threads, multiply_row
from engine.workloads import end_to_end

REFERENCE = Path(__file__).resolve().parents[1] / "engine" / "checkpoints" / "reference"
SLOTS = {"normalization": "fused", "activation": "fused"}


class Timed:
    """Stands in for the forward pass and adds up the time spent in modules: the pass, the head, and the plans of attention."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward
        self.inside = 0.0
        self.planned = [SimpleNamespace(plan=self._timed(each.plan)) for each in forward.planned]
        self.logits = self._timed(forward.logits)
        self._pass = self._timed(forward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.forward, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._pass(*arguments, **options)

    def _timed(self, function: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            self.inside += time.perf_counter() - began
            return result

        return timed


def steps_of(engine: Engine, prompt: list[int], tokens: int) -> list[float]:
    """Seconds of each decode step of one request."""
    times = [time.perf_counter() for _ in engine.stream([prompt], max_tokens=tokens, ignore_eos=True)]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def overhead(engine: Engine, prompt: list[int], tokens: int) -> float:
    """Seconds of a decode step that are not spent in modules; the median of all steps."""
    timed = Timed(engine.forward)
    engine.runner.forward = timed  # type: ignore[assignment]
    try:
        spans = []
        stream = engine.stream([prompt], max_tokens=tokens, ignore_eos=True)
        next(stream)
        while True:
            timed.inside, began = 0.0, time.perf_counter()
            if next(stream, None) is None:
                return statistics.median(spans)
            spans.append(time.perf_counter() - began - timed.inside)
    finally:
        engine.runner.forward = timed.forward


def transformers_steps(model: Any, prompt: list[int], tokens: int) -> list[float]:
    """Seconds of each decode step of `generate`."""
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    clock, ids = Clock(), torch.tensor([prompt])
    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
    # The first call hands over the prompt, the second the token of the prefill.
    return [later - earlier for earlier, later in zip(clock.times[1:], clock.times[2:], strict=False)]


ROWS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "library": torch.nn.functional.linear,
    "by threads": by_threads,
    "engine": multiply_row,
}


def row_rates(shapes: Sequence[tuple[int, int]], rounds: int = 9) -> dict[str, dict[str, float]]:
    """Bytes per second of weights [rows, columns] that one row of float32 meets, by the ways of `ROWS`.

    Rounds of all alternate; each goes through at least 32 MiB of weights and two matrices, as the layers of a model are gone through.
    """
    rates = {}
    for rows, columns in shapes:
        weights = [torch.randn(rows, columns) for _ in range(max(2, (32 << 20) // (4 * rows * columns)))]
        x = torch.randn(1, columns)
        seconds: dict[str, list[float]] = {name: [] for name in ROWS}
        for _ in range(rounds):
            for name, multiply in ROWS.items():
                began = time.perf_counter()
                for weight in weights:
                    multiply(x, weight)
                seconds[name].append((time.perf_counter() - began) / len(weights))
        rates[f"{rows} x {columns}"] = {
            name: 4 * rows * columns / statistics.median(took) for name, took in seconds.items()
        }
    return rates


def main() -> None:
    """Parses the command line, measures, prints, writes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, default=REFERENCE, help="folder of a checkpoint")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    options.add_argument("--tokens", type=int, default=64, help="tokens of a round")
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--out", type=Path, help="JSON file for all figures")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    console = Console()

    model = load_model(given.model, dtype=torch.float32)
    prompt = [(7 * i) % model.config.vocab for i in range(given.prompt)]
    plain = Engine(model, slots=SLOTS, max_len=4096)
    plain.generate([prompt], max_tokens=given.tokens, ignore_eos=True)
    # Before anything else is loaded: another library's memory is no part of the engine.
    outside = overhead(plain, prompt, 8 * given.tokens)

    import transformers

    transformers.utils.logging.disable_progress_bar()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id = None
    compiled = Engine(model, max_len=4096, compile=True)
    began = time.perf_counter()
    compiled.generate([prompt], max_tokens=8, ignore_eos=True)
    compile_s = time.perf_counter() - began

    sides: dict[str, list[float]] = {"transformers": [], "engine": [], "engine, compiled": []}
    transformers_steps(theirs, prompt, 8)
    for _ in range(given.rounds):
        sides["transformers"] += transformers_steps(theirs, prompt, given.tokens)
        sides["engine"] += steps_of(plain, prompt, given.tokens)
        sides["engine, compiled"] += steps_of(compiled, prompt, given.tokens)
    medians = {name: statistics.median(steps) for name, steps in sides.items()}

    machine = f"{platform.processor() or platform.machine()}, {given.threads} threads, torch {torch.__version__}"
    table = Table(title=f"Decode, batch 1, float32, {model.config.parameters():,} parameters ({machine})")
    for heading in ("", "ms a token", "tokens/s", "x transformers"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, seconds in medians.items():
        ratio = medians["transformers"] / seconds
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{1 / seconds:.1f}", f"{ratio:.2f}")
    console.print(table)
    console.print(f"Outside the modules: {outside * 1e6:.0f} µs a decode step. Compiling took {compile_s:.1f} s.")

    figures = {workload.name: end_to_end.measure(plain, workload, seed=1) for workload in end_to_end.CPU}
    table = Table(title="End to end, not compiled")
    for heading in ("", "TTFT p50 ms", "TTFT p95 ms", "TPOT p50 ms", "tokens/s", "prompt tokens/s", "peak MiB"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, f in figures.items():
        numbers = (f.ttft_p50 * 1e3, f.ttft_p95 * 1e3, f.tpot_p50 * 1e3, f.tokens_per_s, f.prompt_tokens_per_s)
        table.add_row(name, *(f"{number:.1f}" for number in numbers), f"{f.peak_bytes / 2**20:.0f}")
    console.print(table)
    with torch.inference_mode():
        rates = row_rates(
            [(256, 256), (512, 256), (1536, 256), (4096, 256), (256, 768), (1024, 1024), (4096, 2048), (8192, 2048)]
        )
    table = Table(title="One row times weights, GB/s of weights")
    for heading in ("rows x columns", *ROWS):
        table.add_column(heading, justify="right")
    for name, found in rates.items():
        table.add_row(name, *(f"{rate / 1e9:.1f}" for rate in found.values()))
    console.print(table)
    if given.out:
        results = {
            "machine": machine,
            "parameters": model.config.parameters(),
            "seconds_per_token": medians,
            "ratio_to_transformers": {name: medians["transformers"] / s for name, s in medians.items()},
            "overhead_s": outside,
            "compile_s": compile_s,
            "row_bytes_per_s": rates,
            "end_to_end": {name: asdict(f) for name, f in figures.items()},
        }
        given.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
