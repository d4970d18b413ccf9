"""What the benchmarks of the judge measure with: a slot's default against itself, in the real sandbox."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from engine.slots.source import Source
from workers.calibrate import workspace
from workers.checkout import Trees
from workers.judge import machine
from workers.judge.hosts import Hosts
from workers.judge.trial import Trial, subject
from workers.protocol import SlotFile
from workers.sandbox import best_level


@contextmanager
def trial_of(slot: str) -> Iterator[Trial]:
    """A trial of the slot's default; both sides are the same code."""
    where = machine.environment()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - where.threads))
    with workspace() as made:
        path = made.default(slot)
        trees = Trees(made.tree(path), made.tree(path))
        judged = subject(SlotFile(path, slot, "modified"), trees)  # type: ignore[arg-type]
        hosts = Hosts(best_level(), where.threads, device=where.device)
        try:
            yield Trial(judged, hosts, Source(os.urandom(32)), where, lambda *_: None)
        finally:
            hosts.close()


@contextmanager
def answering(serve: Callable[[socket.socket], None]) -> Iterator[tuple[socket.socket, int]]:
    """Our end of the socket that a child process serves until it is closed, and the child's number.

    To be entered before this process has met CUDA, which no child may inherit.
    """
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        child = os.fork()
        if child == 0:
            one.close()
            serve(other)
            os._exit(0)
        other.close()
        yield one, child
    os.waitpid(child, 0)


def report(table: Table, figures: dict[str, Any], out: Path | None) -> None:
    """Prints a table, and writes the figures with the machine's facts as JSON where `out` says."""
    Console().print(table)
    if out is not None:
        out.write_text(json.dumps({"environment": machine.facts(), "figures": figures}, indent=1) + "\n")
