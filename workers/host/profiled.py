"""`python -m workers.host.profiled FD CALLS`: a host that serves as any other, and writes down where the time of its calls goes.

After a few calls that warm up it records CALLS calls with torch.profiler and leaves a Chrome trace and a table of operators in its scratch
folder, before it answers the last of them. What it writes is the contributor's word about the contributor's code: it is shown and
believed by nobody.
"""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, profiler

from engine.slots.kind import Driver, Scalar
from workers.host.__main__ import load, serve
from workers.wire import Load

WARM_UP_CALLS = 3
FOLDER = Path("/profile")
TRACE = "trace.json"
OPERATORS = "operators.txt"
ROWS = 25


class WatchedDriver:
    """A driver whose calls after the first few are looked into; preparations are not."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.warm_up = WARM_UP_CALLS

    @property
    def into(self) -> Any:
        """Where outputs are wanted, of a driver that asks. Raises AttributeError for any other."""
        return self.driver.into  # type: ignore[attr-defined]

    @into.setter
    def into(self, wanted: Any) -> None:
        self.driver.into = wanted  # type: ignore[attr-defined]

    def prepare(self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.driver.prepare(operation, params, inputs)

    def run(
        self, operation: str, params: Mapping[str, Scalar], inputs: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if self.warm_up:
            self.warm_up -= 1
            if not self.warm_up:
                self.begin()
            return self.driver.run(operation, params, inputs, held)
        with self.watching(operation):
            return self.driver.run(operation, params, inputs, held)

    def begin(self) -> None:
        """Called before the last of the calls that warm up."""

    def watching(self, operation: str) -> AbstractContextManager[None]:
        """What a call is made in."""
        raise NotImplementedError


class ProfiledDriver(WatchedDriver):
    """Its calls are recorded."""

    def __init__(self, driver: Driver, calls: int, folder: Path) -> None:
        super().__init__(driver)
        self.left = calls
        self.folder = folder
        activities = [profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(profiler.ProfilerActivity.CUDA)
        self.profile = profiler.profile(activities=activities, record_shapes=True)

    def begin(self) -> None:
        self.profile.start()

    @contextmanager
    def watching(self, operation: str) -> Iterator[None]:
        with profiler.record_function(f"call: {operation}"):
            yield
        self.left -= 1
        if self.left == 0:
            self._write()

    def _write(self) -> None:
        self.profile.stop()
        self.profile.export_chrome_trace(str(self.folder / TRACE))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        averages = self.profile.key_averages(group_by_input_shape=True)
        (self.folder / OPERATORS).write_text(averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=44))


def main() -> None:
    """Takes over the inherited socket and serves."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    calls = int(sys.argv[2])

    def profiled(message: Load) -> tuple[Driver, bool]:
        # A replay would show kernels and not what launches them.
        return ProfiledDriver(load(message)[0], calls, FOLDER), False

    serve(sock, profiled)
    os._exit(0)


if __name__ == "__main__":
    main()
