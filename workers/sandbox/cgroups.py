"""Control groups: the only limits that bind a whole process tree in memory and number, and its exact CPU time.

Version 2 where its memory and pids controllers can be handed to children, else version 1 (also beside an empty version
2, as systemd's "hybrid" layout has it). Groups are named after the judge that made them, so a later judge can end what
a killed one left behind. Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from workers.sandbox import processes
from workers.sandbox.confinement import Limits

_PREFIX = "swapbench."
_LEAF = "swapbench-worker"
_HOLD_SECONDS = 5.0
_NEEDED = frozenset({"memory", "pids"})
_OPTIONAL = ("cpu", "cpuset")
_V1_USED = ("memory", "pids", "cpuacct", "cpuset")
_counter = itertools.count()


class Tree(msgspec.Struct, frozen=True):
    """Where this process may make groups. `version` is 1 or 2; `homes` maps a controller to its folder; `unified` is
    version 2's.
    """

    version: int
    homes: Mapping[str, Path]
    unified: Path | None

    def describe(self) -> str:
        """One phrase for `doctor`: version, place and controllers."""
        place = self.unified if self.version == 2 else self.homes["memory"]
        return f"version {self.version} at {place} with {', '.join(sorted(self.homes))}"


class Unavailable(msgspec.Struct, frozen=True):
    """Why there is no tree, and what would mend it."""

    why: str
    mend: str


class Group:
    """One host's control group, on every hierarchy that it needs."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        """Make the group and set its limits. Raises OSError when the kernel refuses one of them."""
        self._tree = tree
        pid = os.getpid()
        self.name = f"{_PREFIX}{pid}.{processes.start_time(pid)}.{next(_counter)}"
        self._folders = {controller: home / self.name for controller, home in tree.homes.items()}
        self._unified = tree.unified / self.name if tree.unified is not None else None
        self._all = list(dict.fromkeys([*self._folders.values(), *([self._unified] if self._unified else [])]))
        try:
            for folder in self._all:
                folder.mkdir()
            self._set(limits)
        except OSError:
            self.remove()
            raise

    @property
    def joins(self) -> list[str]:
        """The files into which a process writes 0 to enter the group."""
        return [str(folder / "cgroup.procs") for folder in self._all]

    def _set(self, limits: Limits) -> None:
        memory, pids = self._folders["memory"], self._folders["pids"]
        (pids / "pids.max").write_text(str(limits.pids))
        if self._tree.version == 2:
            (memory / "memory.max").write_text(str(limits.memory_bytes))
            (memory / "memory.oom.group").write_text("1")
            with contextlib.suppress(OSError):
                (memory / "memory.swap.max").write_text("0")
        else:
            (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
            with contextlib.suppress(OSError):
                (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
        if "cpuset" in self._folders:
            self._set_cpus(limits)

    def _set_cpus(self, limits: Limits) -> None:
        folder = self._folders["cpuset"]
        self.bind(limits.cpus if limits.cpus is not None else os.sched_getaffinity(0))
        if self._tree.version == 1:
            (folder / "cpuset.mems").write_text((folder.parent / "cpuset.mems").read_text().strip())

    def cpu_seconds(self) -> float | None:
        """CPU time used so far by all that was ever in the group, seconds; None where no controller counts it."""
        if "cpuacct" in self._folders:
            return int((self._folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        if self._unified is not None:
            return _keyed(self._unified / "cpu.stat").get("usage_usec", 0) / 1e6
        return None

    def memory_peak(self) -> int | None:
        """The most memory in use at once so far, bytes; None where the kernel does not keep it (version 2 before
        Linux 5.19).
        """
        name = "memory.peak" if self._tree.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self._folders["memory"] / name).read_text())
        except OSError:
            return None

    def oom_kills(self) -> int:
        """How many processes the kernel has ended because the group was over its memory limit."""
        name = "memory.events" if self._tree.version == 2 else "memory.oom_control"
        return _keyed(self._folders["memory"] / name).get("oom_kill", 0)

    def refused_processes(self) -> int:
        """How many times a new process or thread was refused because the group had as many as it may."""
        return _keyed(self._folders["pids"] / "pids.events").get("max", 0)

    def hold(self, held: bool) -> bool:
        """Have the kernel stop everything in the group where it is, or let it go on. Returns when that is so; False where the
        kernel has no freezer for it (version 2 before Linux 5.2, or not mounted). Raises TimeoutError.
        """
        if self._unified is None:
            return False
        deadline = time.monotonic() + _HOLD_SECONDS
        try:
            (self._unified / "cgroup.freeze").write_text("1" if held else "0")
        except FileNotFoundError:
            return False
        while _keyed(self._unified / "cgroup.events").get("frozen") != held:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the group did not {'stop' if held else 'go on'} within {_HOLD_SECONDS:.0f} s")
        return True

    def bind(self, cpus: Iterable[int]) -> bool:
        """Let everything in the group run on `cpus` only; False where no controller does that."""
        if "cpuset" not in self._folders:
            return False
        (self._folders["cpuset"] / "cpuset.cpus").write_text(",".join(map(str, sorted(cpus))))
        return True

    def give_way(self, yes: bool) -> None:
        """Let everything in the group run only where nobody outside it would, or as usual again: where a controller shares out processors by
        group, a thread's own policy counts inside its group only.
        """
        for folder in set(self._folders.values()):
            with contextlib.suppress(OSError), (folder / "cpu.idle").open("r+") as file:
                file.write("1" if yes else "0")

    def kill(self) -> None:
        """Send SIGKILL to everything in the group; returns before all of it is gone."""
        _kill(self._unified, self._all)

    def empty(self) -> bool:
        """Whether no process is left in the group."""
        return not any(_members(folder) for folder in self._all)

    def remove(self) -> None:
        """Remove the group, which must be empty by now or become so within a second."""
        _remove(self._all)


def find() -> Tree | Unavailable:
    """The best place for groups on this machine; ends groups left by judges that are no more."""
    mounts = _mounts()
    own = _own()
    found: Tree | Unavailable | None = None
    if "" in mounts:
        found = _find_v2(mounts[""], own.get("", "/"))
    if not isinstance(found, Tree):
        older = _find_v1(mounts, own)
        if isinstance(older, Tree) or found is None:
            found = older
    if isinstance(found, Tree):
        _end_stale(found)
    return found


def _find_v2(mount: Path, own_path: str) -> Tree | Unavailable:
    own = mount / own_path.lstrip("/")
    if own.name == _LEAF:
        own = own.parent
    if not _words(mount / "cgroup.controllers") >= _NEEDED and not _words(own / "cgroup.controllers") >= _NEEDED:
        return Unavailable(
            f"cgroup version 2 is mounted at {mount}, but without the memory and pids controllers",
            "boot with systemd.unified_cgroup_hierarchy=1, or leave version 1 mounted beside it",
        )
    # Its own group first, so that the operator's limits on the worker also bind its hosts; the root only where that can
    # not be.
    for home in dict.fromkeys((own, mount)):
        if not os.access(home / "cgroup.procs", os.W_OK) or not _words(home / "cgroup.controllers") >= _NEEDED:
            continue
        if _hand_down(home) or (_make_room(home) and _hand_down(home)):
            controllers = _words(home / "cgroup.subtree_control") & {*_NEEDED, *_OPTIONAL}
            return Tree(2, dict.fromkeys(controllers, home), home)
    return Unavailable(
        f"this process may not make control groups under {own}",
        "start the worker in a group of its own: systemd-run --scope -p Delegate=yes COMMAND, or a service with "
        "Delegate=yes; "
        "in a container: a writable /sys/fs/cgroup with a private cgroup namespace",
    )


def _hand_down(home: Path) -> bool:
    """Give the children of `home` the controllers. False when the kernel refuses, for one because `home` itself
    holds processes.
    """
    control = home / "cgroup.subtree_control"
    have = _words(control)
    with contextlib.suppress(OSError):
        # In one write, which is all or nothing: pids alone would turn a group that holds processes into a threaded one.
        if not have >= _NEEDED:
            control.write_text(" ".join(f"+{controller}" for controller in sorted(_NEEDED)))
        for controller in _OPTIONAL:
            if controller not in have:
                control.write_text(f"+{controller}")
    return _words(control) >= _NEEDED


def _make_room(home: Path) -> bool:
    """Move the processes of `home` to a leaf below it, if all of them are this process, what started it, or what it
    started.

    Version 2 allows no group that has both processes and children with controllers.
    """
    members = _members(home)
    kin = set(processes.tree(os.getpid()))
    pid: int | None = os.getpid()
    while pid:
        kin.add(pid)
        pid = processes.parent(pid)
    if not members or not set(members) <= kin:
        return False
    try:
        leaf = home / _LEAF
        leaf.mkdir(exist_ok=True)
        for member in members:
            (leaf / "cgroup.procs").write_text(str(member))
    except OSError:
        return False
    return True


def _find_v1(mounts: Mapping[str, Path], own: Mapping[str, str]) -> Tree | Unavailable:
    homes = {}
    for controller in _V1_USED:
        if controller not in mounts:
            continue
        # In a container the path may be the one outside, of which only the end is mounted here.
        for home in (mounts[controller] / own.get(controller, "/").lstrip("/"), mounts[controller]):
            if os.access(home, os.W_OK) and os.access(home / "cgroup.procs", os.W_OK):
                homes[controller] = home
                break
    missing = sorted(_NEEDED - homes.keys())
    if missing:
        return Unavailable(
            f"no writable control group for {' and '.join(missing)}",
            "mount cgroup version 2 at /sys/fs/cgroup (or version 1's memory and pids) and run the worker as root or in a "
            "delegated group",
        )
    unified = mounts[""] / own.get("", "/").lstrip("/") if "" in mounts else None
    if unified is not None and not os.access(unified / "cgroup.procs", os.W_OK):
        unified = None
    return Tree(1, homes, unified)


def _mounts() -> dict[str, Path]:
    """Mount point of each version 1 controller, and of version 2 under the empty name."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split()[:3]
        place = Path(left.split()[4].encode().decode("unicode_escape"))
        if kind == "cgroup2":
            found.setdefault("", place)
        elif kind == "cgroup":
            for option in options.split(","):
                if option in _V1_USED:
                    found.setdefault(option, place)
    return found


def _own() -> dict[str, str]:
    """This process's group on each hierarchy, with version 2's under the empty name."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    return found


def _end_stale(tree: Tree) -> None:
    homes = list(dict.fromkeys([*tree.homes.values(), *([tree.unified] if tree.unified else [])]))
    names = {entry.name for home in homes for entry in home.iterdir() if entry.name.startswith(_PREFIX)}
    for name in names:
        pid, started, _ = name.removeprefix(_PREFIX).split(".")
        if processes.start_time(int(pid)) != int(started):
            folders = [folder for home in homes if (folder := home / name).is_dir()]
            _kill(tree.unified / name if tree.unified else None, folders)
            _remove(folders)


def _kill(unified: Path | None, folders: list[Path]) -> None:
    if unified is not None:
        try:
            (unified / "cgroup.kill").write_text("1")
        except OSError:
            pass  # before Linux 5.14, or never made
        else:
            return
    for folder in folders:
        for pid in _members(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _remove(folders: list[Path]) -> None:
    deadline = time.monotonic() + 1
    for folder in folders:
        while True:
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                # Busy for a moment after the last process is gone; a judge that comes later tries again.
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            else:
                break


def _members(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _keyed(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
