"""Where the time of a pair goes: `python -m benchmarks.judge_overhead [--pairs N] [--slot SLOT] [--out FILE]`.

A pair is two fresh hosts and every case in both. Extrapolated to 24 pairs and the 8 that confirm; the stage has 8 minutes for 24. An
empty call is what a timed call has beside the module's own work; on the CPU its share of each case is stated.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.judge_trial import report, trial_of
from engine.slots.kinds.activation import swiglu_call
from workers.judge.speed import measure_pairs
from workers.protocol import Policy

STAGE_SECONDS = 480.0


def empty_call(calls: int = 500) -> float:
    """Median seconds of a call without work."""
    with trial_of("activation") as trial:
        host = trial.open(trial.subject.head)
        tensor = torch.ones((1, 2), device=trial.environment.device)
        return statistics.median(host.timed(host.ready(swiglu_call(tensor))).seconds for _ in range(calls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4, help="pairs to measure (default 4)")
    parser.add_argument("--slot", default="attention", help="slot whose default is measured (default attention)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    empty = empty_call()
    with trial_of(options.slot) as trial:
        began = time.perf_counter()
        pairs = measure_pairs(trial, Policy(), options.pairs)
        records = [next(pairs)]
        first = time.perf_counter() - began
        opened, began = trial.hosts.opened, time.perf_counter()
        records += pairs
        seconds = (time.perf_counter() - began) / max(1, len(records) - 1)
        hosts = (trial.hosts.opened - opened) / max(1, len(records) - 1)
    pending = statistics.median(
        sum(sum(samples) for side in (r.base_samples, r.head_samples) for samples in side.values()) for r in records
    )
    table = Table(title=f"{len(records)} pairs of {options.slot}", title_justify="left")
    for heading in ("", "seconds", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    figures = {
        "set-up and first pair": first,
        "a further pair": seconds,
        "of it, timed calls": pending,
        "24 pairs": first + 23 * seconds,
        "24 pairs and 8 that confirm": first + 31 * seconds,
    }
    targets = {"24 pairs": f"≤ {STAGE_SECONDS:.0f}"}
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}", targets.get(name, ""))
    table.add_row("hosts started a pair", f"{hosts:.1f}", "")
    for case in records[0].base:
        took = statistics.median(record.base[case] for record in records)
        figures[f"empty call as a share of {case}"] = empty / took
        table.add_row(
            f"{case}: {took * 1e3:.2f} ms a call, an empty one is",
            f"{empty / took:.1%}",
            "≤ 3 % from 1 ms on" if took >= 1e-3 else "",
        )
    report(table, figures, options.out)


if __name__ == "__main__":
    main()
