"""What /proc says of a process tree, seen from outside: who belongs to it, its CPU time, its waiting for a CPU, its
memory.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_PROC = Path("/proc")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process. With the pid it names a
    process for good.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def parent(pid: int) -> int | None:
    """The parent of `pid`; None when there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def tree(root: int) -> list[int]:
    """`root` and its living descendants. Complete for a pid namespace's first process, which inherits every orphan
    in it.
    """
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        children = _children(pid)
        if children is None:
            continue
        found.append(pid)
        waiting.extend(children)
    return found


def cpu_seconds(root: int) -> float:
    """CPU time of the tree in seconds, at the resolution of the scheduler for the living and of a clock tick for the
    dead.
    """
    total = 0.0
    for pid in tree(root):
        fields = _stat(pid)
        if fields is None:
            continue
        total += (int(fields[13]) + int(fields[14])) * _TICK  # children that were waited for
        try:
            # The clock of another process, as clock_getcpuclockid(3) builds its id.
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:
            continue
    return total


def run_delay_seconds(root: int) -> float:
    """How long the living threads of the tree were ready but had no CPU, in seconds (schedstat's second field;
    sched-stats.rst).
    """
    total = 0
    for pid in tree(root):
        for thread in _threads(pid):
            try:
                total += int((thread / "schedstat").read_text().split()[1])
            except (OSError, IndexError):
                continue
    return total / 1e9


def memory_bytes(root: int) -> int:
    """Anonymous and shared memory in use by the tree, bytes; a page shared by two processes counts twice."""
    total = 0
    for pid in tree(root):
        try:
            for line in (_PROC / str(pid) / "status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def stop(root: int, seconds: float) -> None:
    """Stop the tree with SIGSTOP, which nobody in it can catch. Returns when no thread of it runs; raises TimeoutError after
    `seconds`, for one because it makes processes faster than they are stopped.
    """
    deadline = time.monotonic() + seconds
    while moving := [pid for pid in tree(root) if not _stopped(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(moving)} processes could not be stopped within {seconds:.0f} s")
        for pid in moving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)


def go_on(root: int) -> None:
    """Undo `stop`."""
    for pid in tree(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def bind(root: int, cpus: Iterable[int]) -> None:
    """Let every thread that the tree has now run on `cpus` only; what they start inherits it."""
    for pid in tree(root):
        for thread in _threads(pid):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), cpus)


def give_way(root: int, yes: bool) -> None:
    """Let every thread that the tree has now run only where nobody else would (SCHED_IDLE, sched(7)), or as usual again.

    What they start inherits it. Raises PermissionError where this process may not bring them back.
    """
    policy = os.SCHED_IDLE if yes else os.SCHED_OTHER
    for pid in tree(root):
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))


def processes_of(uid: int) -> Iterator[int]:
    """Pids of every process whose real uid is `uid`."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    yield int(entry.name)
            except OSError:
                continue


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, so that [0] is the state (proc_pid_stat(5) field 3)."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name is whatever the process made it, parentheses and newlines included; it ends at the last one.
    return text[text.rindex(b")") + 2 :].decode().split()


def _stopped(pid: int) -> bool:
    """Whether no thread of `pid` can run: each is stopped, or has ended."""
    for thread in _threads(pid):
        try:
            text = (thread / "stat").read_bytes()
        except OSError:
            continue
        if text[text.rindex(b")") + 2 : text.rindex(b")") + 3] not in b"TtZX":
            return False
    return True


def _threads(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def _children(pid: int) -> list[int] | None:
    threads = _threads(pid)
    if not threads:
        return None
    children: list[int] = []
    for thread in threads:
        try:
            children.extend(int(child) for child in (thread / "children").read_text().split())
        except OSError:
            continue
    return children
