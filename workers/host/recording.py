"""Work that is recorded once as a CUDA graph and replayed, as the engine does with steps that decode (engine/runner/graphs.py)."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from engine.slots.registry import SlotError
from workers.wire import Run

EAGER_RUNS = 2
"""Before it is recorded: whatever compiles or allocates does so."""

Work = Callable[[], object]


@cache
def _aside() -> torch.cuda.Stream:
    """One stream for all: cuBLAS keeps 32 MiB for each that it ever saw."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def as_graph(work: Work) -> Work:
    """What replays `work`. Raises SlotError where it cannot be recorded, and what `work` itself raises."""
    stream = _aside()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(EAGER_RUNS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # A failure to end the recording leaves its stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            work()
    except Exception as error:
        # What ended the recording hides what broke it.
        cause = error.__context__ if isinstance(error.__context__, Exception) else error
        raise SlotError(
            "On an accelerator the engine records steps that decode as CUDA graphs, and this implementation cannot be recorded: nothing in it "
            f"may wait for the device or depend on values that lie there. {type(cause).__name__}: {str(cause)[:500]}"
        ).with_traceback(cause.__traceback__) from None
    replay: Work = graph.replay
    return replay


class Recording:
    """The last work that was recorded. Messages that name the same memory ask for the same, so that a replay does what a call would."""

    def __init__(self, record: Callable[[Work], Work] = as_graph) -> None:
        self._record = record
        self._of: Any = None
        self._replay: Work | None = None

    def run(self, message: Run, work: Work) -> None:
        """Does `work`, by a replay where the message before asked for the same. Raises what recording raises."""
        asked = (message.operation, message.params, message.inputs, message.outputs)
        if self._replay is None or asked != self._of:
            self.forget()
            self._replay = self._record(work)
            self._of = asked
        self._replay()

    def forget(self) -> None:
        """What is held is another, or what is asked for: nothing that was recorded holds any longer."""
        self._replay = self._of = None
