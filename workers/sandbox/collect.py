"""Copy files out of a living host's scratch (a compiler's cache, a profiler's trace) without trusting anything about them.

The host may change everything while it is read. So each folder is entered by descriptor, each entry opened as a mere name first
(`O_PATH | O_NOFOLLOW`), and only what that shows to be a regular file is read, up to the bounds.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workers.sandbox.host import HostProcess

_BLOCK = 1 << 20
_MAX_DEPTH = 24
_MAX_REFUSALS = 32


class Refusal(msgspec.Struct, frozen=True):
    """One entry that was left where it was; `path` is relative and printable, `why` a phrase."""

    path: str
    why: str


class Collected(msgspec.Struct):
    """What `collect` copied: relative paths and bytes in all, and the first of what it refused."""

    files: list[str] = []
    bytes: int = 0
    refused: list[Refusal] = []

    def refuse(self, path: str, why: str) -> None:
        """Note a refusal; after a few dozen, more would only be the host's way to write to our log."""
        if len(self.refused) < _MAX_REFUSALS:
            self.refused.append(Refusal(path.encode(errors="backslashreplace").decode(), why))


class _Full(Exception):
    pass


def collect(host: HostProcess, inside: str, into: Path, *, max_bytes: int, max_files: int) -> Collected:
    """Copy the regular files below the host's scratch folder `inside` to the empty folder `into`.

    Links, FIFOs, sockets, devices, names that are not plain text, and all beyond the bounds are refused and said so. The
    copies are the caller's, not executable and not writable by others. Raises ValueError when `inside` is no scratch
    folder of the host, FileNotFoundError when the host has ended.
    """
    result = Collected()
    entries_left = 4 * max_files
    waiting = [("", host.open_scratch(inside))]
    try:
        while waiting:
            folder, descriptor = waiting.pop()
            try:
                for name in _names(descriptor):
                    entries_left -= 1
                    if entries_left < 0:
                        raise _Full(folder)
                    path = f"{folder}/{name}" if folder else name
                    try:
                        child = _take(descriptor, name, path, into, result, max_bytes, max_files)
                    except OSError as error:
                        result.refuse(path, f"could not be read: {error.strerror}")
                        continue
                    if child is not None:
                        waiting.append((path, child))
            finally:
                os.close(descriptor)
    except _Full as full:
        result.refuse(str(full), "the folder and what follows: too many entries")
    finally:
        for _, descriptor in waiting:
            os.close(descriptor)
    return result


def _take(
    folder: int, name: str, path: str, into: Path, result: Collected, max_bytes: int, max_files: int
) -> int | None:
    """Copy one entry, or note why not; the open descriptor if it is a folder to enter."""
    if not name.isprintable():
        result.refuse(path, "its name is not plain text")
        return None
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        kind = os.fstat(handle).st_mode
        if stat.S_ISDIR(kind):
            if path.count("/") >= _MAX_DEPTH:
                result.refuse(path, "too deep")
                return None
            child = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
            (into / path).mkdir()
            return child
        if not stat.S_ISREG(kind):
            result.refuse(path, f"it is {_KINDS.get(stat.S_IFMT(kind), 'no regular file')}")
        elif len(result.files) >= max_files:
            result.refuse(path, f"more than {max_files} files")
        else:
            _copy(handle, path, into / path, result, max_bytes)
        return None
    finally:
        os.close(handle)


def _copy(handle: int, path: str, target: Path, result: Collected, max_bytes: int) -> None:
    source = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Its size is what it is while we read, not what the host said before.
        copied = 0
        with open(target, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as out:
            while block := os.read(source, min(_BLOCK, max_bytes - result.bytes - copied + 1)):
                copied += len(block)
                if result.bytes + copied > max_bytes:
                    break
                out.write(block)
        if result.bytes + copied > max_bytes:
            target.unlink()
            result.refuse(path, f"more than {max_bytes} bytes in all")
        else:
            result.bytes += copied
            result.files.append(path)
    finally:
        os.close(source)


def _names(descriptor: int) -> Iterator[str]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            yield entry.name


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
