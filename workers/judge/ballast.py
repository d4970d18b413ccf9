"""Whether a module gets by with the memory that it claims to need: the rest of the accelerator's is taken away while it is timed.

What a host has is counted by the driver, for the whole device, once it was asked to give back what it only keeps for later; so a copy in memory of an
allocator of its own counts as well. What is free beyond its allowance is held by the judge, so that there is no call that counts in which it could have
had more.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
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
# What a driver says is free may be too scattered, or its own, to be taken.
LOOSE_BYTES = 64 * MIB
# Of what the judge needs meanwhile: so many calls are kept, or just drawn.
OWN_CALLS = 4
OWN_BYTES = 256 * MIB
OWN_PIECE = 4 * MIB
PIECE_BYTES = 2048 * MIB
# What stays free between turns: for the next host's context, and for comparisons.
SPARE_BYTES = 3072 * MIB
# How PyTorch, and the libraries under it, say that there is no memory left.
WITHOUT_MEMORY = ("out of memory", "alloc_failed", "out_of_memory")


@dataclass(frozen=True)
class Room:
    """What a case's calls have of the accelerator's memory, in bytes."""

    allowed: int
    """A host may have so much, beside what is lent to it."""
    lent: int
    """And this is what is lent to it for such a call."""
    own: tuple[int, ...]
    """The judge needs such pieces."""

    @classmethod
    def of(cls, base: int, beside: int, held: Sequence[HeldSet], call: Call) -> "Room":
        """base: what base's host had for such a call; beside: what a module may need besides (`SlotKind.beside_stored`); held: by either side."""
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
        self._own = 0
        """What the judge had itself when a host's memory was last bounded."""

    def before(self, room: Room, arenas: Mapping[str, int]) -> None:
        """Frees what a turn's first call may take, and what is lent for it. arenas: the bytes of the standing buffers."""
        self.ease(room.allowed + room.lent + sum(arenas.values()) + SPARE_BYTES)

    @contextmanager
    def first(self, client: DeviceClient, room: Room) -> Iterator[None]:
        """Around a turn's first call, which compiles and may try what is fastest: it has 3 GiB more than those that count. Raises as `around`."""
        self._own = _own()
        with self._explained(client, f"In its first call a module has at least {_mib(room.allowed + SPARE_BYTES)}"):
            yield

    @contextmanager
    def around(self, client: DeviceClient, room: Room) -> Iterator[None]:
        """While entered, the accelerator has no memory free but what the host may still take of its room.

        Raises CallFailed where the host has more, before or afterwards, ContributedError where it asks for more meanwhile, SandboxError where the judge
        itself has too little.
        """
        with self._explained(client, f"In these calls a module has {_mib(room.allowed)}"):
            try:
                self._check(client, room, 0)
                self._make_room(room.own)
                # Until nothing is left to be taken: a host that takes memory at the same time has had it counted then.
                while self._leave(self._check(client, room, 0), room):
                    pass
                self._own = _own()
                yield
                self._check(client, room, LOOSE_BYTES)
            finally:
                self.ease(SPARE_BYTES)

    @contextmanager
    def _explained(self, client: DeviceClient, has: str) -> Iterator[None]:
        try:
            yield
        except ContributedError as error:
            if not any(sign in f"{error.error} {error}".lower() for sign in WITHOUT_MEMORY):
                raise
            if _own() > self._own + LOOSE_BYTES:
                raise SandboxError(f"The judge has taken memory that the host should have had: {error}") from None
            self._check_nobody_else(client)
            raise ContributedError(
                f"{error} {has} of the accelerator's memory, its context among it, beside what is lent to it: what base has, and room for unpacking a "
                "weight. The rest is taken away, so that nothing can be kept that no claim counts.",
                error.error,
                error.traceback,
            ) from None
        except (torch.OutOfMemoryError, vmm.DeviceMemoryError) as error:
            raise SandboxError(f"The accelerator has too little memory left for the judge: {error}") from None

    def _check(self, client: DeviceClient, room: Room, loose: int) -> int:
        """The bytes that the host may still take. Raises CallFailed where it has more than it may."""
        had = client.taken()
        left = room.allowed + loose - had
        if left >= 0:
            return left
        self._check_nobody_else(client)
        raise CallFailed(
            f"The module keeps {_mib(had)} of the accelerator's memory, its context among it, beside what is lent to it; in these calls it may have "
            f"{_mib(room.allowed)}: what base has, and room for unpacking a weight. What is kept between calls has to be part of what `pack` returns, "
            "whose bytes count."
        )

    @staticmethod
    def _check_nobody_else(client: DeviceClient) -> None:
        """Ends the host, which has failed in any case: what is still counted then was never its own. Raises SandboxError where that is much."""
        client.process.kill()
        if client.taken() > LOOSE_BYTES:
            raise SandboxError(
                "Another program has taken memory of the accelerator, which cannot be told from the module's."
            )

    def _make_room(self, pieces: Sequence[int]) -> None:
        """Has the judge's own allocator take so much: of what is freed it keeps all. Raises OutOfMemoryError."""
        try:
            taken = _taken(pieces)
        except torch.OutOfMemoryError:
            self.close()
            taken = _taken(pieces)
        del taken

    def _leave(self, nbytes: int, room: Room) -> int:
        """Leaves so many bytes free: gives back where they are fewer, and takes what is more. Returns how many it took.

        Raises SandboxError where they are fewer still, or the driver does not give what it says is free.
        """
        self.ease(nbytes)
        if _free() < nbytes:
            torch.cuda.empty_cache()
            self._make_room(room.own)
        if (free := _free()) < nbytes:
            raise SandboxError(
                f"The accelerator has too little memory: a host should have {_mib(nbytes)}, and {_mib(free)} are free."
            )
        took = 0
        while (more := _free() - nbytes) >= vmm.granularity():
            self._pieces.append(vmm.Reservation())
            part = self._pieces[-1].take(min(more, PIECE_BYTES))
            took += part
            if not part and more > LOOSE_BYTES:
                raise SandboxError(f"The accelerator's driver says that {_mib(more)} are free, and does not give them.")
            if not part:
                self._pieces.pop()
                return 0
        return took

    def ease(self, nbytes: int) -> None:
        """Gives back until so many bytes are free."""
        while self._pieces and _free() < nbytes:
            self._pieces[-1].close()
            self._pieces.pop()

    def close(self) -> bool:
        """Gives back all. Returns whether there was anything."""
        had = bool(self._pieces)
        self.ease(sys.maxsize)
        return had


def _free() -> int:
    return int(torch.cuda.mem_get_info()[0])


def _own() -> int:
    """Bytes of the accelerator's memory that this process has, ballast and what is lent among it."""
    return int(torch.cuda.memory_reserved()) + vmm.held_bytes()


def _taken(pieces: Sequence[int]) -> list[torch.Tensor]:
    return [torch.empty(nbytes, dtype=torch.uint8, device="cuda") for nbytes in pieces]


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f} MiB"
