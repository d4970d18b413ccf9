"""Whether a module gets by with the memory that it claims to need: the rest of the accelerator's is taken away while it is timed.

What a host has is counted by the driver, for the whole device, once it was asked to give back what it only keeps for later; so a copy in memory of an
allocator of its own counts as well. What is free beyond its allowance is held by the judge, so that there is no moment, and no call, in which it could
have had more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.slots.kind import Call, CallFailed, HeldSet
from workers import vmm
from workers.judge.client import ContributedError
from workers.judge.device import DeviceClient
from workers.sandbox import SandboxError

MIB = 1 << 20
# Kernels that are loaded late, and an allocator's rounding.
BESIDE_BYTES = 80 * MIB
# Of what the judge needs meanwhile: so many calls are kept, or just drawn.
OWN_CALLS = 4
OWN_BYTES = 256 * MIB
OWN_PIECE = 4 * MIB
PIECE_BYTES = 2048 * MIB
# What stays free between turns: for the next host's context, and for comparisons.
SPARE_BYTES = 3072 * MIB


@dataclass(frozen=True)
class Room:
    """What a case's calls have of the accelerator's memory, in bytes."""

    allowed: int
    """A host may take so much, beside what is lent to it."""
    lent: int
    own: tuple[int, ...]
    """The judge needs such pieces."""

    @classmethod
    def of(cls, base: int, beside: int, held: Sequence[HeldSet], call: Call) -> "Room":
        """base: what base's host took for such a call; beside: what a module may need besides (`SlotKind.beside_stored`); held: by either side."""
        # Drawn in float32 first.
        inputs = sum(2 * tensor.nbytes for tensor in call.inputs.values())
        outputs = sum(spec.nbytes for spec in call.outputs.values())
        small = (OWN_PIECE,) * (OWN_BYTES // OWN_PIECE)
        lent = max(sum(item.tensor.nbytes for item in one.values() if item.access != "private") for one in held)
        return cls(max(0, base) + beside + BESIDE_BYTES, lent + inputs + outputs, (inputs, outputs) * OWN_CALLS + small)


class Ballast:
    """Memory of the accelerator that the judge holds, so that nobody has it.

    Taking and giving back goes by the size (4 ms for each GB on an H200, in which other cards of the machine wait, too), so most of it is kept from one
    turn to the next.
    """

    def __init__(self) -> None:
        self._pieces: list[vmm.Reservation] = []

    def before(self, room: Room) -> None:
        """Before a turn's first call, which compiles and may try what is fastest, and before what it needs is lent."""
        self.ease(room.allowed + room.lent + SPARE_BYTES)

    @contextmanager
    def around(self, client: DeviceClient, room: Room) -> Iterator[None]:
        """While entered, the accelerator has no memory free but what the host may still take of its room.

        Raises CallFailed where the host has taken more before, ContributedError where it asks for more meanwhile, SandboxError where the judge
        itself has too little.
        """
        allowed = room.allowed
        left = allowed - client.grown()
        if left < 0:
            raise CallFailed(
                f"The module keeps {_mib(allowed - left)} of the accelerator's memory beside what is stored; in these calls it may take "
                f"{_mib(allowed)}: what base takes, and room for unpacking a weight. What is kept between calls has to be part of what `pack` "
                "returns, whose bytes count."
            )
        try:
            self._make_room(room.own)
            self.leave(left)
            yield
        except ContributedError as error:
            if "out of memory" not in f"{error}".lower():
                raise
            raise ContributedError(
                f"{error} In these calls a module has {_mib(allowed)} of the accelerator's memory beside what is stored: what base takes, and room "
                "for unpacking a weight. The rest is taken away, so that nothing can be kept that no claim counts.",
                error.error,
                error.traceback,
            ) from None
        except torch.OutOfMemoryError as error:
            raise SandboxError(f"The accelerator has too little memory left for the judge: {error}") from None
        finally:
            self.ease(SPARE_BYTES)

    def _make_room(self, pieces: Sequence[int]) -> None:
        """Has the judge's own allocator take so much: of what is freed it keeps all. Raises OutOfMemoryError."""
        try:
            taken = _taken(pieces)
        except torch.OutOfMemoryError:
            self.close()
            taken = _taken(pieces)
        del taken

    def leave(self, nbytes: int) -> None:
        """Leaves so many bytes free: takes what is more, gives back where they are fewer."""
        self.ease(nbytes)
        while (more := torch.cuda.mem_get_info()[0] - nbytes) >= vmm.granularity():
            piece = vmm.Reservation(min(more, PIECE_BYTES))
            if not piece.nbytes:
                break
            self._pieces.append(piece)

    def ease(self, nbytes: int) -> None:
        """Gives back until so many bytes are free."""
        while self._pieces and torch.cuda.mem_get_info()[0] < nbytes:
            self._pieces.pop().close()

    def close(self) -> None:
        """Gives back all."""
        while self._pieces:
            self._pieces.pop().close()


def _taken(pieces: Sequence[int]) -> list[torch.Tensor]:
    return [torch.empty(nbytes, dtype=torch.uint8, device="cuda") for nbytes in pieces]


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f} MiB"
