"""Measures the engine on an H100 with the shape of Llama-3.1-8B: `python benchmarks/engine_h100.py --out results.json`.

Every figure is of the engine as users run it: scheduler, paged cache, slots, sampling. Weights are random. Variants run in a
child process, one after the other; a variant that crashes or hangs costs itself only.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Bytes/s and FLOP/s on the data sheet of the H100 SXM5 80GB (HBM3; bf16 tensor cores, dense).
PEAK_BYTES = 3.35e12
PEAK_FLOPS = 989e12
CONFIG = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SLOTS = {"attention": "paged", "normalization": "fused", "activation": "fused"}


def build(quantization: Any = None, **options: Any) -> Any:
    """An engine with random weights made on the GPU."""
    import torch

    from engine.generate import Engine
    from engine.loader import random_model
    from engine.models.config import ModelConfig

    config = ModelConfig.from_hf(CONFIG | {"architectures": ["LlamaForCausalLM"]})
    model = random_model(config, 0, dtype=torch.bfloat16, device="cuda", quantization=quantization)
    return Engine(model, slots=SLOTS | options.pop("slots", {}), **options)


def decode(
    batch: int, prompt: int, tokens: int, rounds: int, quantization: Any = None, **options: Any
) -> dict[str, Any]:
    """Decode speed after prompts of `prompt` tokens; medians over rounds of the time from the first token to the last."""
    import torch

    # All prompts in one step, so that all sequences decode from the same moment on.
    room = max(2048, batch * prompt)
    engine = build(
        quantization,
        max_len=2048,
        kv_tokens=batch * 1024,
        max_batch=batch,
        step_tokens=room,
        memory_share=0.8,
        **options,
    )
    began = time.perf_counter()
    engine.generate(prompts_of(batch, prompt, 0), max_tokens=20, ignore_eos=True)
    setup = time.perf_counter() - began
    rates, latencies, first = [], [], []
    for turn in range(1, rounds + 1):
        prompts = prompts_of(batch, prompt, turn)
        torch.cuda.synchronize()
        start = time.perf_counter()
        events = [(time.perf_counter(), event) for event in engine.stream(prompts, max_tokens=tokens, ignore_eos=True)]
        assert all(event.completion.error is None for _, event in events)
        begin = max(now for now, _ in events[:batch])
        span = events[-1][0] - begin
        rates.append(batch * (tokens - 1) / span)
        first.append(begin - start)
        latencies.append(span / (tokens - 1))
    tpot = statistics.median(latencies)
    weights = engine.model.decode_nbytes()
    cache = batch * (prompt + tokens / 2) * engine.model.config.kv_values_per_token * engine.model.dtype.itemsize
    return {
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_rounds": rates,
        "tpot_ms": tpot * 1e3,
        "ttft_ms": statistics.median(first) * 1e3,
        "bytes_per_step": weights + cache,
        "weight_bytes": weights,
        "mbu": (weights + cache) / tpot / PEAK_BYTES,
        "setup_s": setup,
        "capture_s": engine.runner.graphs.seconds if engine.runner.graphs else 0.0,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "kernels": kernels(engine, prompts_of(batch, prompt, rounds + 1)),
    }


def prompts_of(batch: int, length: int, turn: int) -> list[list[int]]:
    """Prompts that share no prefix, within a turn or across turns."""
    return [[turn * 1000 + n + 1, *((7 * i + n) % 100000 + 1 for i in range(length - 1))] for n in range(batch)]


def kernels(engine: Any, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """The kernels of decode by their share of the device's time, from the profiler: what holds the figure back."""
    from torch.profiler import ProfilerActivity, profile

    stream = engine.stream(prompts, max_tokens=18, ignore_eos=True)
    for _ in prompts:
        next(stream)
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in stream:
            pass
    steps = 17
    rows = [(e.key[:90], e.self_device_time_total / steps, e.count / steps) for e in recorded.key_averages()]
    rows.sort(key=lambda row: -row[1])
    return [{"kernel": k, "us_per_step": round(us, 1), "launches_per_step": round(n, 1)} for k, us, n in rows[:14]]


def check() -> dict[str, Any]:
    """Whether the GPU's graphs give the tokens that the CPU's plain path gives, on a small model in float32."""
    import torch

    from engine.generate import Engine, Request
    from engine.loader import Random, load_model
    from engine.models.config import ModelConfig
    from engine.sampler import Sampling

    torch.backends.cuda.matmul.allow_tf32 = False
    small = ModelConfig(
        vocab=499, hidden=256, layers=3, q_heads=8, kv_heads=2, head_dim=32, intermediate=512, context=1024
    )
    source = Random(small, 0, torch.float32, torch.device("cpu"))
    weights = {name: source.read(name) for name in source.names()}
    plain, moved = load_model(small, weights), load_model(small, weights, device="cuda")
    requests = [
        Request(
            [(13 * i + 5 * n) % 499 for i in range(3 + 37 * n)],
            40,
            Sampling() if n % 2 else Sampling(temperature=0.8, seed=n, top_k=50 if n == 2 else 0),
        )
        for n in range(7)
    ]
    wanted = [c.tokens for c in Engine(plain, kv_tokens=4096).generate(requests)]
    engine = Engine(moved, slots={"attention": "paged"}, kv_tokens=4096, block_size=16, max_batch=8)
    result: dict[str, Any] = {"graphs": engine.runner.graphs is not None}
    got = [c.tokens for c in engine.generate(requests)]
    result["same_tokens"] = [one == other for one, other in zip(got, wanted, strict=True)]
    texts = [request.prompt for request in requests]
    ours, theirs = engine.logits(texts), Engine(plain, kv_tokens=4096).logits(texts)
    result["logits_max_abs_err"] = max((a.cpu() - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    step = engine.logits(texts, chunk=1)
    result["decode_max_abs_err"] = max((a.cpu() - b).abs().max().item() for a, b in zip(step, theirs, strict=True))
    reference = Path(__file__).resolve().parents[1] / "engine" / "checkpoints" / "reference"
    if (reference / "config.json").is_file():
        model = load_model(reference, dtype=torch.bfloat16, device="cuda")
        fast = Engine(model, slots=SLOTS, kv_tokens=4096, max_len=2048)
        fast.generate([[5, 6, 7]], max_tokens=20, ignore_eos=True)
        result["reference_model_tokens_per_s"] = 1 / fast.generate([[5, 6, 7]], 400, ignore_eos=True)[0].tpot
    return result


def prefill(length: int, rounds: int, step: int = 0, **options: Any) -> dict[str, Any]:
    """Time to the first token of one prompt, computed in one step. Each prompt is `step` tokens shorter than the one before it."""
    import torch

    engine = build(max_len=length + 64, kv_tokens=length + 64, step_tokens=length, graphs=False, **options)
    times = []
    for seed in range(rounds + 2):
        prompt = [(7 * i + 31 * seed) % 100000 + 1 for i in range(length - seed * step)]
        torch.cuda.synchronize()
        completion = engine.generate([prompt], max_tokens=1, ignore_eos=True)[0]
        times.append(completion.ttft)
    ttft = statistics.median(times[2:])
    return prefill_figures(engine.model.config, length, ttft) | {
        "first_s": times[0],
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def prefill_figures(config: Any, length: int, seconds: float) -> dict[str, Any]:
    """Tokens/s and MFU; the head is computed for the last token only, attention is causal."""
    matrices = config.parameters() - 2 * config.vocab * config.hidden
    attention = 2 * config.layers * config.q_heads * config.head_dim * length * length
    flops = 2 * matrices * length + attention
    return {"ttft_ms": seconds * 1e3, "tokens_per_s": length / seconds, "mfu": flops / seconds / PEAK_FLOPS}


def transformers_model() -> Any:
    """The same model in transformers, random weights, SDPA."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**CONFIG, attn_implementation="sdpa", dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval()


def transformers_decode(batch: int, prompt: int, tokens: int, compile: bool) -> dict[str, Any]:
    """`generate` with a static cache: the time of `tokens` tokens less that of 1, so prefill is left out."""
    import torch
    from transformers import GenerationConfig

    model = transformers_model()
    ids = torch.randint(1, 100000, (batch, prompt), device="cuda")

    def run(count: int) -> float:
        options = GenerationConfig(
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
            eos_token_id=None,
            disable_compile=not compile,
        )
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=options)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    setup = run(tokens)
    run(1)
    spans = [run(tokens) - run(1) for _ in range(2)]
    span = min(spans)
    return {
        "tokens_per_s": batch * (tokens - 1) / span,
        "tpot_ms": span / (tokens - 1) * 1e3,
        "setup_s": setup,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def transformers_prefill(length: int, rounds: int, step: int = 0) -> dict[str, Any]:
    """One forward pass into a static cache, the head for the last token only; lengths as in `prefill`."""
    import torch
    from transformers import StaticCache

    from engine.models.config import ModelConfig

    model = transformers_model()
    cache = StaticCache(config=model.config, max_cache_len=length + 64)
    ids = torch.randint(1, 100000, (1, length), device="cuda")
    times = []
    for turn in range(rounds + 2):
        with torch.inference_mode():
            cache.reset()
            shorter = ids[:, turn * step :]
            torch.cuda.synchronize()
            began = time.perf_counter()
            out = model(shorter, past_key_values=cache, use_cache=True, logits_to_keep=1)
            out.logits.argmax(-1).tolist()
        times.append(time.perf_counter() - began)
    config = ModelConfig.from_hf(CONFIG | {"architectures": ["LlamaForCausalLM"]})
    return prefill_figures(config, length, statistics.median(times[2:]))


LONG = {"prompt": 128, "tokens": 256, "rounds": 4, "ahead": 16}
WIDE = {"batch": 64, "prompt": 512, "tokens": 64, "rounds": 2, "ahead": 16}
VARIANTS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "check": (check, {}),
    "bf16": (decode, {"batch": 1, **LONG}),
    "int8": (decode, {"batch": 1, **LONG, "quantization": "int8wo"}),
    "fp8": (decode, {"batch": 1, **LONG, "quantization": "fp8wo"}),
    "int4": (decode, {"batch": 1, **LONG, "quantization": "int4wo"}),
    "bf16-batch64": (decode, WIDE),
    "transformers-batch64": (transformers_decode, {"batch": 64, "prompt": 512, "tokens": 64, "compile": False}),
    "prefill-8k": (prefill, {"length": 8192, "rounds": 4}),
    "transformers-prefill-8k": (transformers_prefill, {"length": 8192, "rounds": 4}),
    "prefill-8k-other-lengths": (prefill, {"length": 8191, "rounds": 4, "step": 3}),
    "transformers-prefill-8k-other-lengths": (transformers_prefill, {"length": 8191, "rounds": 4, "step": 3}),
    "transformers-batch64-compiled": (
        transformers_decode,
        {"batch": 64, "prompt": 512, "tokens": 64, "compile": True},
    ),
    "bf16-compiled": (decode, {"batch": 1, **LONG, "compile": True}),
    "int8-compiled": (decode, {"batch": 1, **LONG, "compile": True, "quantization": "int8wo"}),
    "bf16-batch64-compiled": (decode, {**WIDE, "compile": True}),
    "prefill-8k-compiled": (prefill, {"length": 8192, "rounds": 4, "compile": True}),
}


def child(names: list[str], report: Any) -> None:
    """Runs variants, reporting ("start", name) and ("done", name, result) for each."""
    import gc

    import torch

    for name in names:
        report.put(("start", name, None))
        function, options = VARIANTS[name]
        try:
            torch.cuda.reset_peak_memory_stats()
            result = function(**options)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:600], "traceback": traceback.format_exc()[-1500:]}
        report.put(("done", name, result))
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()


def run(names: list[str], limit_s: float, total_s: float, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Runs every variant, in a new child process after one that died or took longer than `limit_s`."""
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    ends = time.monotonic() + total_s
    while pending := [name for name in names if name not in results]:
        report = context.Queue()
        process = context.Process(target=child, args=(pending, report))
        process.start()
        current, since = pending[0], time.monotonic()
        while len(results) < len(names):
            try:
                kind, name, result = report.get(timeout=1.0)
            except Exception:
                now = time.monotonic()
                if process.is_alive() and now - since < limit_s and now < ends:
                    continue
                why = "ran out of time" if process.is_alive() else f"died with status {process.exitcode}"
                results[current] = {"error": why}
                break
            if kind == "start":
                current, since = name, time.monotonic()
                continue
            results[name] = result | {"wall_s": time.monotonic() - since}
            brief = {k: v for k, v in results[name].items() if k not in ("kernels", "traceback")}
            print(name, json.dumps(brief), flush=True)
            save(results)
        if process.is_alive():
            process.join(timeout=10)
            process.kill()
        process.join()
        if time.monotonic() > ends:
            for name in names:
                results.setdefault(name, {"error": "not run: the time was up"})
    save(results)
    return results


def table(results: dict[str, Any]) -> str:
    """The figures as lines of text, with ratios to their anchors."""
    anchors = {"bf16": 168.0, "int8": 220.0, "fp8": 222.0, "int4": 328.0}
    pairs = {
        "bf16-batch64": ("transformers-batch64", "tokens_per_s"),
        "bf16-batch64-compiled": ("transformers-batch64-compiled", "tokens_per_s"),
        "prefill-8k": ("transformers-prefill-8k", "tokens_per_s"),
        "prefill-8k-other-lengths": ("transformers-prefill-8k-other-lengths", "tokens_per_s"),
        "prefill-8k-compiled": ("transformers-prefill-8k", "tokens_per_s"),
    }
    lines = [f"{'variant':30s} {'tokens/s':>10s} {'TPOT ms':>8s} {'TTFT ms':>9s} {'MBU':>6s} {'MFU':>6s}  ratio"]
    for name, result in results.items():
        if "tokens_per_s" not in result:
            lines.append(f"{name:30s} {result.get('error', '')[:120] or json.dumps(result)[:200]}")
            continue
        ratio = ""
        if name in anchors:
            ratio = f"{result['tokens_per_s'] / anchors[name]:.2f} x {anchors[name]:.0f}"
        elif name in pairs and "tokens_per_s" in results.get(pairs[name][0], {}):
            ratio = f"{result['tokens_per_s'] / results[pairs[name][0]]['tokens_per_s']:.2f} x {pairs[name][0]}"
        cells = [
            f"{result[key]:{width}.{digits}f}" if key in result else " " * width
            for key, width, digits in (("tokens_per_s", 10, 1), ("tpot_ms", 8, 3), ("ttft_ms", 9, 1))
        ]
        shares = [f"{result[key]:6.1%}" if key in result else " " * 6 for key in ("mbu", "mfu")]
        lines.append(f"{name:30s} {' '.join(cells + shares)}  {ratio}")
    return "\n".join(lines)


def commit() -> str:
    """The commit of this tree, or "unknown" where it is no repository."""
    here = Path(__file__).resolve().parent
    told = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def main() -> None:
    """Parses the command line, runs, prints the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON file for all figures")
    options.add_argument("--only", help=f"variants, comma-separated, of {', '.join(VARIANTS)}")
    options.add_argument("--limit", type=float, default=75.0, help="seconds a variant may take")
    options.add_argument("--commit", default=commit(), help="of this tree, where git cannot tell")
    options.add_argument("--total", type=float, default=560.0, help="seconds that all may take")
    given = options.parse_args()
    names = given.only.split(",") if given.only else list(VARIANTS)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    import torch

    from engine.train_reference import machine as described

    machine = described(torch.device("cuda")) | {name: version(name) for name in ("triton", "transformers")}
    machine["commit"] = given.commit

    def save(results: dict[str, Any]) -> None:
        given.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))

    results = run(names, given.limit, given.total, save)
    print(json.dumps(machine))
    print(table(results))


if __name__ == "__main__":
    main()
