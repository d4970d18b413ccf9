"""Bytes of a hostile host against the judge: `python -m tests.fuzz.fuzz_wire -max_total_time=60`, after `pip install atheris`.

Most inputs go through what the judge reads from its socket; every eighth speaks a whole conversation. Anything but the judge's own
exceptions is a finding, which libFuzzer leaves in a file `crash-...` to be given to this command again.
"""

import contextlib
import socket
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("atheris is not installed: pip install atheris (it has wheels for Linux and Python 3.11 to 3.13).")

with atheris.instrument_imports(include=["workers"]):
    from tests.workers.test_wire_fuzz import Hostile, honest, judge, saying
    from workers import wire

PROPER = (
    wire.Loaded(0.1),
    wire.Kept(),
    wire.Done(7),
    wire.Failed(7, "ValueError", "It raised.", "line 1"),
    wire.Prepared(7, [wire.Spec("packed", (64, 2), "int8"), wire.Spec("scale", (64,), "bfloat16")]),
)
OURS, THEIRS = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def read_one(data: bytes) -> None:
    """What the judge makes of one message."""
    THEIRS.send(data)
    with contextlib.suppress(wire.WireError):
        wire.receive_at_judge(OURS)


def converse(data: bytes) -> None:
    """A conversation in which each request is answered honestly or with the next bytes."""
    provider = atheris.FuzzedDataProvider(data)
    script = []
    for _ in range(provider.ConsumeIntInRange(1, 8)):
        if provider.ConsumeBool():
            script.append(honest)
        else:
            script.append(saying(provider.ConsumeBytes(provider.ConsumeIntInRange(0, 200))))
    judge(Hostile(script))


def one_input(data: bytes) -> None:
    """One input of the fuzzer."""
    if not data:
        return
    if data[0] % 8 == 0:
        converse(data[1:])
    else:
        read_one(data[1:])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as seeds:
        # msgspec is compiled, so nothing guides the fuzzer to what a message is but proper ones to begin with.
        for number, message in enumerate(PROPER):
            Path(seeds, str(number)).write_bytes(b"\1" + wire.encode(message))
        atheris.Setup([*sys.argv, seeds], one_input)
        atheris.Fuzz()
