"""What a module host may see and use: the values, without any means of enforcing them."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

MIB = 1 << 20
GIB = 1 << 30

# The range between the last uid that distributions give to people and the first that systemd gives to services
# (https://systemd.io/UIDS-GIDS/): nobody has one of these.
FIRST_UID = 61000
SLOTS = 180


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Ceilings of one host and everything that it starts.

    `memory_bytes` counts anonymous memory, tmpfs and memfd pages of the whole process tree; `pids` counts threads too.
    `file_bytes` is the largest single file, `output_bytes` what may be written to stdout and stderr together. `cpus`:
    None leaves the caller's.
    """

    memory_bytes: int = 4 * GIB
    pids: int = 128
    cpus: frozenset[int] | None = None
    file_bytes: int = 512 * MIB
    open_files: int = 512
    output_bytes: int = 8 * MIB


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """One program and all that it sees.

    `readonly` maps host paths to paths inside; `symlinks` maps paths inside to their targets; `scratch` maps paths
    inside to the bytes of a private tmpfs there, which allows execution (compilers' caches) and dies with the host.
    `socket` is a descriptor of the caller that the program finds as `socket_number`. `devices` are device nodes such as
    /dev/nvidia0. `loopback` lets it speak to itself over internet sockets, which profilers do; it has a network of its own, in
    which nobody else is, either way. `slot` picks the uid: one for each accelerator, so that two hosts alive at once can not touch each
    other and the kernel's per-user limits count one host only.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = {}
    readonly: Mapping[str, str] = {}
    symlinks: Mapping[str, str] = {}
    scratch: Mapping[str, int] = msgspec.field(default_factory=lambda: {"/tmp": 256 * MIB})
    scratch_inodes: int = 16384
    devices: tuple[str, ...] = ()
    socket: int | None = None
    socket_number: int = 3
    working_directory: str = "/"
    limits: Limits = Limits()
    loopback: bool = False
    slot: int = 0

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("a confinement needs a program to run: argv is empty")
        if not 0 <= self.slot < SLOTS:
            raise ValueError(f"slot must lie in 0..{SLOTS - 1}, got {self.slot}")
        if self.socket is not None and not 3 <= self.socket_number <= 8:
            raise ValueError(f"socket_number must lie in 3..8, got {self.socket_number}")
        if self.limits.open_files < 128:
            raise ValueError(
                f"open_files must be at least 128 (the sandbox itself needs some), got {self.limits.open_files}"
            )
        inside = [*self.readonly.values(), *self.symlinks, *self.scratch, self.working_directory]
        for path in [*self.readonly, *inside, *self.devices]:
            if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
                raise ValueError(f"paths of a confinement are absolute and without '..', got {path!r}")
        for text in (*self.argv, *self.env, *self.env.values()):
            if "\0" in text:
                raise ValueError(f"arguments and environment can not hold a NUL character, got {text!r}")


class View(msgspec.Struct, frozen=True):
    """Part of a confinement's file system: read-only binds and symlinks."""

    readonly: dict[str, str]
    symlinks: dict[str, str]


def interpreter_view(prefix: str = sys.prefix, base_prefix: str = sys.base_prefix) -> View:
    """What this Python (or the one of another environment) needs to run inside: its folders at their own paths, /usr
    and the loader's cache.
    """
    readonly: dict[str, str] = {}
    symlinks: dict[str, str] = {}
    system = ["/usr", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/alternatives", "/nix/store"]
    for path in system:
        if os.path.exists(path):
            readonly[path] = path
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            symlinks[path] = os.readlink(path)
        elif os.path.isdir(path):
            readonly[path] = path
    executable = Path(prefix, "bin", "python3")
    real_base = executable.resolve().parent.parent if executable.exists() else Path(base_prefix)
    for path in (base_prefix, os.path.realpath(base_prefix), str(real_base), prefix):
        if not any(path == seen or path.startswith(seen + "/") for seen in readonly):
            readonly[path] = path
    return View(readonly, symlinks)
