"""`python -m workers.host FD`: serves one judge over the socket FD until told to stop."""

import gc

from workers import deferred

if __name__ == "__main__":
    # Nothing that the imports make is garbage, and looking for it takes a tenth of their time.
    gc.disable()
    deferred.import_torch()

import os
import re
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.slots.header import HeaderError
from engine.slots.kind import Driver, kind_named
from engine.slots.places import put
from engine.slots.registry import SlotError, load_file
from workers.host.layout import scatter
from workers.host.mapping import Mappings
from workers.host.recording import Recording
from workers.wire import (
    NOTHING,
    Closed,
    Collect,
    Done,
    Failed,
    FromHost,
    Hold,
    Kept,
    Load,
    Loaded,
    Prepare,
    Prepared,
    Region,
    Run,
    Spec,
    Stop,
    receive_at_host,
    send,
)

AWAKE_SECONDS = 0.002
# The device of tensors without data, which needs what `deferred` puts off; and packages, which may use it.
NEEDS_ALL_OF_TORCH = re.compile(rb"""["']meta["':]|^# needs\b|\bprims\b""", re.MULTILINE)


def load(message: Load) -> tuple[Driver, bool]:
    """Imports the slot file; its driver, and whether calls may be recorded."""
    torch.set_num_threads(message.threads)
    if message.device == "cuda":
        torch.zeros(1, device="cuda")
    path = Path(message.path)
    if NEEDS_ALL_OF_TORCH.search(path.read_bytes()):
        deferred.complete()
        gc.freeze()
    header, implementation = load_file(path)
    kind = kind_named(header.kind)
    lacks = kind.why_malformed(implementation)
    if lacks:
        raise SlotError(" ".join(lacks))
    return kind.driver(implementation), kind.recordable(header)


def places_of(regions: list[Region], mappings: Mappings) -> dict[str, torch.Tensor]:
    """Where the judge reads what a call gives, by name."""
    return {region.name: mappings.tensor(region) for region in regions}


def copy_out(results: Any, places: Mapping[str, torch.Tensor]) -> None:
    """Puts the named results where the judge reads them. Raises SlotError where one is missing or has another form."""
    for name, place in places.items():
        if name not in results:
            raise SlotError(f"The implementation returned no {name!r}.")
        put(repr(name), results[name], place)


def compute(driver: Driver, message: Run, held: dict[str, torch.Tensor], mappings: Mappings) -> object:
    """Runs an operation on what the message names. Returns what has to live until the judge was answered: freeing it takes time."""
    inputs = {region.name: mappings.tensor(region) for region in message.inputs}
    places = places_of(message.outputs, mappings)
    if message.operation == NOTHING:
        results: Mapping[str, torch.Tensor] = {message.outputs[0].name: next(iter(inputs.values()))}
    else:
        if hasattr(driver, "into"):
            driver.into = places
        results = driver.run(message.operation, message.params, inputs, held)
    copy_out(results, places)
    return inputs, results


def describe(error: BaseException, slot_file: str) -> Failed:
    """The failure as the contributor should read it: the error, and the frames from the slot file on; none where the fault is in what it gave."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if frame.filename == slot_file), None)
    ours = isinstance(error, SlotError | HeaderError)
    shown = frames[first:] if first is not None else [] if ours else frames
    text = "".join(traceback.format_list(shown))[-16_000:]
    kind = type(error).__name__
    if ours:
        sentence = str(error)
    elif isinstance(error, SyntaxError) and error.filename == slot_file:
        sentence = f"SyntaxError in line {error.lineno}: {error.msg}."
        text = "".join(traceback.format_exception_only(error))[-16_000:]
    else:
        at = next((frame for frame in reversed(frames) if frame.filename == slot_file), None)
        where = f" (line {at.lineno} of the slot file)" if at is not None else ""
        sentence = f"{kind}: {str(error)[:2000]}{where}"
    return Failed(0, kind[:200], sentence[:8000], text)


def _nothing() -> None:
    pass


def _stay_awake(sock: socket.socket) -> None:
    """Waits a little for the next message without sleeping."""
    waiting = select.poll()
    waiting.register(sock, select.POLLIN | select.POLLRDHUP)
    end = time.monotonic() + AWAKE_SECONDS
    while not waiting.poll(0) and time.monotonic() < end:
        pass


@torch.inference_mode()
def serve(
    sock: socket.socket, load: Callable[[Load], tuple[Driver, bool]] = load, recording: Recording | None = None
) -> None:
    """Answers the judge's messages one by one; `load` makes the driver of a slot file, and says whether calls may be recorded.

    Calls are made without autograd, as the engine makes them; entered here, that costs nothing while the clock runs.
    """
    scatter()
    gc.freeze()
    gc.enable()
    mappings = Mappings()
    held: dict[str, torch.Tensor] = {}
    driver: Driver | None = None
    recordable = False
    recording = recording or Recording()
    slot_file = ""
    finish: Callable[[], None] = _nothing
    on_device = False
    prepared: dict[str, torch.Tensor] = {}
    while True:
        try:
            message, fds = receive_at_host(sock)
        except Closed:
            return
        seq = getattr(message, "seq", 0)
        answer: FromHost
        try:
            if isinstance(message, Stop):
                return
            if isinstance(message, Load):
                slot_file = message.path
                on_device = message.device == "cuda"
                if on_device:
                    # What was launched is not done: an answer before the device has finished would be caught by the judge's sample.
                    finish = torch.cuda.synchronize
                started = time.monotonic()
                with torch.inference_mode(False):
                    driver, recordable = load(message)
                answer = Loaded(time.monotonic() - started)
            elif isinstance(message, Hold):
                mappings.map(message.buffers, fds)
                for name in message.drop:
                    held.pop(name, None)
                for region in message.regions:
                    held[region.name] = mappings.tensor(region)
                if message.drop or message.regions or message.give_back:
                    recording.forget()
                if message.give_back:
                    gc.collect()
                    if on_device:
                        torch.cuda.empty_cache()
                answer = Kept()
                if on_device and not message.buffers and not message.regions:
                    # An empty request: a call follows at once.
                    send(sock, answer)
                    _stay_awake(sock)
                    continue
            elif driver is None:
                raise SlotError("No slot file is loaded.")
            elif isinstance(message, Prepare):
                mappings.map(message.buffers, fds)
                with torch.inference_mode(False):
                    inputs = {region.name: mappings.tensor(region) for region in message.inputs}
                    packed = driver.prepare(message.operation, message.params, inputs)
                    prepared = {name: value.detach().contiguous() for name, value in packed.items()}
                answer = Prepared(
                    seq,
                    [Spec(n, tuple(v.shape), str(v.dtype).removeprefix("torch.")) for n, v in prepared.items()],  # type: ignore[arg-type]
                )
            elif isinstance(message, Collect):
                mappings.map(message.buffers, fds)
                copy_out(prepared, places_of(message.outputs, mappings))
                finish()
                answer = Done(seq)
            else:
                mappings.map(message.buffers, fds)
                if message.record and recordable:
                    recording.run(message, partial(compute, driver, message, held, mappings))
                    results = None
                else:
                    recording.forget()
                    results = compute(driver, message, held, mappings)
                finish()
                answer = Done(seq)
                send(sock, answer)
                del results
                mappings.drop(message.drop)
                continue
        except Exception as error:
            failed = describe(error, slot_file)
            answer = Failed(seq, failed.error, failed.sentence, failed.traceback)
        send(sock, answer)


def main() -> None:
    """Takes over the inherited socket and serves."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    # Contributor code that exits (sys.exit is an Exception of its own kind) ends the host; the judge reports it.
    serve(sock)
    os._exit(0)


if __name__ == "__main__":
    main()
