"""How long the judge and a host take to speak: `python -m benchmarks.judge_roundtrip [--calls N] [--out FILE]`.

A call whose work is next to nothing, as every timed call is made: inputs in a sealed buffer of their own, message, mapping,
answer, secret sample. Target: at most 100 µs in the median on the CPU (blocking), 30 µs on the GPU machine. Beside it, in the same run, what the
machine takes at least: two processes on the same processors that pass a message back and forth and do nothing else.
"""

import argparse
import os
import socket
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from benchmarks.judge_trial import answering, report, trial_of
from engine.slots.kinds.activation import swiglu_call

TARGET_SECONDS = {"cpu": 100e-6, "cuda": 30e-6}


MESSAGE_BYTES = 300
"""About what a message and its answer have."""


def bare_exchange(calls: int, ours: frozenset[int], theirs: frozenset[int]) -> list[float]:
    """Seconds of each exchange between two processes that wait in the kernel for each other, one on `ours`, one on `theirs`."""

    def echo(sock: socket.socket) -> None:
        os.sched_setaffinity(0, theirs)
        while message := sock.recv(MESSAGE_BYTES):
            sock.send(message)

    before = os.sched_getaffinity(0)
    seconds, message = [], bytes(MESSAGE_BYTES)
    with answering(echo) as (sock, _):
        os.sched_setaffinity(0, ours)
        for _ in range(calls):
            began = time.perf_counter()
            sock.send(message)
            sock.recv(MESSAGE_BYTES)
            seconds.append(time.perf_counter() - began)
        os.sched_setaffinity(0, before)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="calls to make (default 2000)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    last = frozenset({max(os.sched_getaffinity(0))})
    bare = bare_exchange(options.calls, frozenset(os.sched_getaffinity(0)) - last or last, last)
    with trial_of("activation") as trial:
        device = trial.environment.device
        host = trial.open(trial.subject.head)
        seconds, whole = [], []
        for number in range(options.calls + 100):
            call = swiglu_call(torch.full((1, 2), 1.0 + number, device=device))
            began = time.perf_counter()
            answer = host.timed(host.ready(call))
            if number >= 100:
                whole.append(time.perf_counter() - began)
                seconds.append(answer.seconds)
    table = Table(title=f"An empty call, {options.calls} times, {device}", title_justify="left")
    for heading in ("", "median", "90 %", "99 %", "target"):
        table.add_column(heading, justify="left" if not heading else "right")
    figures = {}
    for name, values, target in (
        ("inside the clock", seconds, TARGET_SECONDS[device]),
        ("with drawing up and copying", whole, None),
        ("a bare message and its answer", bare, None),
    ):
        median, most, worst = (float(np.quantile(values, q)) for q in (0.5, 0.9, 0.99))
        figures[name] = {"median_seconds": median, "p90_seconds": most, "p99_seconds": worst, "target_seconds": target}
        cells = [f"{value * 1e6:.1f} µs" for value in (median, most, worst)]
        table.add_row(name, *cells, f"≤ {target * 1e6:.0f} µs" if target else "")
    report(table, figures, options.out)


if __name__ == "__main__":
    main()
