"""Times products with packed weights on a GPU, by kind, shape and tokens: `python benchmarks/products_h100.py --out products.json`.

Sixteen products are recorded in a CUDA graph, so that launching them costs nothing, over copies of the weight that together do not fit
the second-level cache. Medians of five replays.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from engine.slots import registry
from engine.train_reference import machine

TOKENS = (1, 8, 16, 32, 33, 64, 65, 128, 256, 512)
SHAPES = ((28672, 4096), (16384, 2048), (4096, 14336), (6144, 4096))
KINDS = ("none", "int8wo", "fp8wo", "int4wo")
CALLS = 16
COLD_ELEMENTS = 250 << 20


def microseconds(works: list[Callable[[], Any]]) -> float:
    """Median time of one of `works`, which take turns."""
    works[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(CALLS):
            works[number % len(works)]()
    graph.replay()
    torch.cuda.synchronize()
    taken = []
    for _ in range(5):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        taken.append(1e3 * first.elapsed_time(last) / CALLS)
    return round(statistics.median(taken), 1)


def main() -> None:
    """Parses the command line, times, writes."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON file for all figures")
    options.add_argument("--commit", default="unknown", help="of this tree")
    given = options.parse_args()
    found: dict[str, Any] = {"machine": machine(torch.device("cuda")) | {"commit": given.commit}}
    with torch.inference_mode():
        for outputs, inputs in SHAPES:
            copies = max(1, min(8, COLD_ELEMENTS // (outputs * inputs)))
            weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02
            for name in KINDS:
                quantization = registry.load("quantization", name)()
                packed = quantization.pack(weight)
                cold = [{key: value.clone() for key, value in packed.items()} for _ in range(copies)]
                row = {}
                for tokens in TOKENS:
                    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
                    row[tokens] = microseconds([partial(quantization.linear, x, one) for one in cold])
                found[f"{name} {outputs}x{inputs}, us by tokens"] = row
                print(name, outputs, inputs, row, flush=True)
                given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
