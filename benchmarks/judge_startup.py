"""From nothing to a host that has imported its slot file: `python -m benchmarks.judge_startup [--starts N] [--out FILE]`.

Target: ready within 1.5 s on the CPU and 1 s on the GPU machine (median).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks.judge_trial import report, trial_of

TARGET_SECONDS = {"cpu": 1.5, "cuda": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=10, help="hosts to start (default 10)")
    parser.add_argument("--slot", default="attention", help="slot whose default is loaded (default attention)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    ready, ending = [], []
    with trial_of(options.slot) as trial:
        for _ in range(options.starts + 1):
            began = time.perf_counter()
            trial.open(trial.subject.head)
            ready.append(time.perf_counter() - began)
            began = time.perf_counter()
            trial.hosts.close()
            ending.append(time.perf_counter() - began)
        device, level = trial.environment.device, trial.hosts.level
    table = Table(title=f"{options.starts} hosts at isolation level {level}, {device}", title_justify="left")
    for heading in ("", "median", "least", "most", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    figures = {}
    # The first start reads files that the page cache does not hold yet.
    for name, values, target in (("ready", ready[1:], TARGET_SECONDS[device]), ("ended", ending[1:], None)):
        median, least, most = float(np.median(values)), min(values), max(values)
        figures[name] = {
            "median_seconds": median,
            "least_seconds": least,
            "most_seconds": most,
            "target_seconds": target,
        }
        cells = [f"{value:.2f} s" for value in (median, least, most)]
        table.add_row(name, *cells, f"≤ {target:.1f} s" if target else "")
    report(table, figures, options.out)


if __name__ == "__main__":
    main()
