"""Scatters a process's heap, so that where tensors come to lie is another draw in each process.

Where arrays lie relative to each other decides a few per cent of the time of what streams through them, and where they lie follows from everything that
was allocated before: the length of a slot file's comments is enough to make identical code 1 % faster or slower, in each of its
processes. (Mytkowicz et al., "Producing wrong data without doing anything obviously wrong!", ASPLOS 2009; drawing layouts anew as the remedy: Curtsinger and
Berger, "Stabilizer", ASPLOS 2013.) Drawn for each process, it is noise, which the pairs average out and the intervals know of.
"""

import ctypes
import random

JUST_BELOW_MMAP_THRESHOLD_MAX = (32 << 20) - (64 << 10)
"""glibc's DEFAULT_MMAP_THRESHOLD_MAX is 32 MiB. Freeing such a block makes all smaller ones come from the heap from then on, and keeps what is freed of it, as in any
process that has loaded a model: else a call's temporaries are mapped, and faulted in page by page, time and again."""
SIZES = range(17, 24)
"""Powers of two of the blocks that leave holes, 128 KiB to 16 MiB: below what is mapped by itself."""
HOLES = 4
"""Of each size, up to twice as large."""
LARGEST_WEDGE = 4096
"""Bytes between two holes, at most: a page, in which all that matters of an address repeats."""
WEDGES = 1000
"""Tries to put one behind a hole: there may be as many places before it."""


def scatter() -> None:
    """Leaves holes of random sizes at random distances in the heap of the C library. Where it is not glibc, nothing happens."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
    except (OSError, AttributeError):
        return
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    drawn = random.SystemRandom()
    library.free(library.malloc(JUST_BELOW_MMAP_THRESHOLD_MAX))
    holes = []
    for power in SIZES:
        for _ in range(HOLES):
            holes.append(library.malloc(int((1 << power) * (1 + drawn.random()))))
            # One that fits in somewhere before would leave this hole and the next to become one.
            for _ in range(WEDGES):
                if library.malloc(drawn.randrange(64, LARGEST_WEDGE)) > holes[-1]:
                    break
    for hole in holes:
        library.free(hole)
