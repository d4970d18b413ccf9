"""The messages between the judge and the module host, over one SOCK_SEQPACKET socket pair.

The only module that both sides share. msgspec encodes a closed set of Structs; nothing is ever unpickled. Tensors do not
travel in messages: a message names regions of shared buffers, whose file descriptors travel with it (SCM_RIGHTS).
"""

import array
import select
import socket
import threading
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

MAX_MESSAGE_BYTES = 200_000
MAX_FDS = 32
MAX_TENSORS = 256

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
Dtype = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Scalar = int | float | str | bool | None


class Buffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shared buffer that comes with this message; its descriptor is the next one attached."""

    id: Size
    nbytes: Size
    writable: bool
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the memory lies: behind a memfd, or on the accelerator (workers.vmm)."""


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contiguous tensor inside a buffer, under a name."""

    name: Name
    buffer: Size
    offset: Size
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
    dtype: Dtype


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that the host would like to hand over."""

    name: Name
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=8)]
    dtype: Dtype


# -- judge to host --------------------------------------------------------------------------------------------------


class Load(msgspec.Struct, tag="load", frozen=True, forbid_unknown_fields=True):
    """Import this slot file (a path inside the sandbox) and make its driver."""

    path: str
    threads: int
    device: Literal["cpu", "cuda"] = "cpu"


class Hold(msgspec.Struct, tag="hold", frozen=True, forbid_unknown_fields=True):
    """Keep these tensors under their names, instead of earlier ones of the same names; forget `drop`.

    give_back: also the accelerator's memory that is only kept for what comes later.
    """

    buffers: list[Buffer]
    regions: list[Region]
    drop: list[str] = []
    give_back: bool = False


class Prepare(msgspec.Struct, tag="prepare", frozen=True, forbid_unknown_fields=True):
    """Run a preparation; answered by Prepared."""

    seq: int
    operation: str
    params: dict[str, Scalar]
    buffers: list[Buffer]
    inputs: list[Region]


class Collect(msgspec.Struct, tag="collect", frozen=True, forbid_unknown_fields=True):
    """Copy what the last preparation gave into these regions; answered by Done."""

    seq: int
    buffers: list[Buffer]
    outputs: list[Region]


NOTHING = ""
"""The operation of a call without work: its first output is its first input."""


class Run(msgspec.Struct, tag="run", frozen=True, forbid_unknown_fields=True):
    """Run an operation on these inputs and copy its outputs; answered by Done."""

    seq: int
    operation: str
    params: dict[str, Scalar]
    buffers: list[Buffer]
    inputs: list[Region]
    outputs: list[Region]
    drop: list[int] = []
    """Buffers that are not used again; unmapped after the answer."""
    record: bool = False
    """Record the work the first time, and replay it where the next message asks for the same on the same memory."""


class Stop(msgspec.Struct, tag="stop", frozen=True, forbid_unknown_fields=True):
    """Leave."""


# -- host to judge --------------------------------------------------------------------------------------------------


class Loaded(msgspec.Struct, tag="loaded", frozen=True, forbid_unknown_fields=True):
    """The slot file is imported."""

    seconds: float


class Kept(msgspec.Struct, tag="kept", frozen=True, forbid_unknown_fields=True):
    """The held tensors are mapped."""


class Prepared(msgspec.Struct, tag="prepared", frozen=True, forbid_unknown_fields=True):
    """The preparation gave these."""

    seq: int
    specs: Annotated[list[Spec], msgspec.Meta(max_length=MAX_TENSORS)]


class Done(msgspec.Struct, tag="done", frozen=True, forbid_unknown_fields=True):
    """The outputs of call `seq` are complete."""

    seq: int


class Failed(msgspec.Struct, tag="failed", frozen=True, forbid_unknown_fields=True):
    """The implementation raised. `seq` is that of the request, 0 for Load and Hold."""

    seq: int
    error: Annotated[str, msgspec.Meta(max_length=200)]
    sentence: Text
    traceback: Text = ""


ToHost = Load | Hold | Prepare | Collect | Run | Stop
FromHost = Loaded | Kept | Prepared | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_to_host: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)


class _Incoming(threading.local):
    """Where a thread receives messages: memory for the largest, made once, as making it takes ten times as long as receiving."""

    def __init__(self) -> None:
        self.buffer = bytearray(MAX_MESSAGE_BYTES + 1)
        self.view = memoryview(self.buffer)


_incoming = _Incoming()


class WireError(Exception):
    """The other side broke the agreement; `str(error)` says how."""


class Closed(WireError):
    """The other side has gone."""


def send(sock: socket.socket, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
    """Sends one message with its descriptors. Raises WireError where it is too large, OSError where the peer is gone."""
    send_encoded(sock, encode(message), fds)


def encode(message: msgspec.Struct) -> bytes:
    """The bytes of a message. Raises WireError where they are too many."""
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"A message of {len(data):,} bytes is too large; at most {MAX_MESSAGE_BYTES:,} are sent.")
    return data


def send_encoded(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Sends bytes that `encode` gave."""
    if fds:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
    else:
        sock.send(data)


def receive_at_host(sock: socket.socket) -> tuple[ToHost, list[int]]:
    """The judge's next message, with the descriptors that came along. Raises Closed, WireError."""
    nbytes, ancillary, flags, _ = sock.recvmsg_into(
        [_incoming.buffer], socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
            fds.extend(received)
    if not nbytes:
        raise Closed("The judge has gone.")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise WireError("A message was cut short.")
    return _to_host.decode(_incoming.view[:nbytes]), fds


def receive_at_judge(sock: socket.socket) -> FromHost:
    """The host's next message.

    Descriptors are never taken: without room for ancillary data the kernel discards them (unix(7)). Raises Closed, WireError,
    TimeoutError by the socket's timeout.
    """
    nbytes, _, flags, _ = sock.recvmsg_into([_incoming.buffer])
    if flags & socket.MSG_CTRUNC:
        raise WireError("The module host sent file descriptors, which it never may.")
    if not nbytes:
        # A message may be empty; only who has also hung up is gone.
        if _hung_up(sock):
            raise Closed("The module host has gone.")
        raise WireError("The module host sent an empty message.")
    if flags & socket.MSG_TRUNC or nbytes > MAX_MESSAGE_BYTES:
        raise WireError(f"The module host sent a message of more than {MAX_MESSAGE_BYTES:,} bytes.")
    try:
        return _from_host.decode(_incoming.view[:nbytes])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        # msgspec quotes what it refuses, at whatever length the host chose.
        raise WireError(f"The module host sent something that is no message: {printable(str(error), 200)}.") from None


def waiting(sock: socket.socket) -> bool:
    """Whether the other side has sent something that was not received yet. Raises Closed where it has gone."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLRDHUP)
    for _, events in poll.poll(0):
        if events & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
            raise Closed("The module host has gone.")
        return True
    return False


def _hung_up(sock: socket.socket) -> bool:
    try:
        waiting(sock)
    except Closed:
        return True
    return False


def printable(text: str, limit: int) -> str:
    """`text` from a host as it may be shown: control characters (a terminal obeys them) as escapes, and at most `limit` characters."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"
