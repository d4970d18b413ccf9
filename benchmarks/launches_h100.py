"""How long the same launches take, call after call: `python -m benchmarks.launches_h100 [--calls N] [--out FILE]`.

One process launches some hundred small kernels when it is asked to, and does nothing else; nobody judges it. It is asked on one processor, and on
the one that `workers.judge.cores` finds free before each call, in turns of twenty calls. Without a GPU it adds numbers in Python
instead. On a virtual machine that shares its cores with others the first has two speeds.
"""

import argparse
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from benchmarks.judge_trial import answering, report
from workers.judge.cores import Cores

LAUNCHES = 700
STRETCH = 20
SLOW = 1.2
"""Beyond the shortest one, by which a call counts as slow."""


def launches() -> Callable[[], None]:
    """The work of a call."""
    if not torch.cuda.is_available():

        def add() -> None:
            total = 0
            for number in range(100 * LAUNCHES):
                total += number & 7

        return add
    x = torch.zeros(4096, device="cuda")

    def launch() -> None:
        for _ in range(LAUNCHES):
            x.add_(1.0)
        torch.cuda.synchronize()

    return launch


def serve(sock: socket.socket) -> None:
    """Answers each message with the seconds of a call, and of processor time in it."""
    work = launches()
    for _ in range(STRETCH):
        work()
    sock.send(b"ready")
    while sock.recv(1):
        began, used = time.perf_counter(), time.thread_time()
        work()
        sock.send(struct.pack("dd", time.perf_counter() - began, time.thread_time() - used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400, help="calls of each kind (default 400)")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between calls (default 0.01)")
    parser.add_argument("--out", type=Path, help="write every call's seconds as JSON")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"on one processor": [], "on a free one": []}
    with answering(serve) as (sock, child):
        sock.recv(8)
        mine = sorted(os.sched_getaffinity(0))
        own, theirs = mine[: max(1, len(mine) // 4)], mine[len(mine) // 4 :] or mine
        cores, chosen = Cores(), theirs[-1]
        while len(found["on a free one"]) < options.calls:
            for name, calls in found.items():
                for _ in range(STRETCH):
                    if name == "on a free one":
                        chosen = cores.free(theirs, chosen)
                        os.sched_setaffinity(0, own)
                    os.sched_setaffinity(child, {chosen if name == "on a free one" else theirs[-1]})
                    time.sleep(options.pause)
                    sock.send(b"x")
                    calls.append(struct.unpack("dd", sock.recv(16)))
    table = Table(title=f"{LAUNCHES} launches, ms a call", title_justify="left")
    for heading in ("", "shortest", "10 %", "median", "90 %", "slow", "stretches of slow ones"):
        table.add_column(heading, justify="left" if not heading else "right")
    shortest = min(seconds for calls in found.values() for seconds, _ in calls)
    for name, calls in found.items():
        times = np.array([seconds for seconds, _ in calls])
        slow = times > SLOW * shortest
        lengths = [len(list(group)) for is_slow, group in itertools.groupby(slow) if is_slow]
        cells = [f"{1e3 * value:.2f}" for value in np.quantile(times, (0, 0.1, 0.5, 0.9))]
        table.add_row(name, *cells, f"{slow.mean():.0%}", f"{len(lengths)}, longest {max(lengths, default=0)}")
    report(table, {name: {"seconds, of processor time": calls} for name, calls in found.items()}, options.out)


if __name__ == "__main__":
    main()
