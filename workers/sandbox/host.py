"""A confined program that runs: watch it from outside, say in a sentence how it ended, and end all of it."""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable

from workers.sandbox import cgroups, processes
from workers.sandbox.confinement import GIB, MIB, Confinement, Limits

_TAIL_BYTES = 16 * 1024
_GONE_SECONDS = 20.0
_WATCH_SECONDS = 0.1
_STOP_SECONDS = 5.0


class SandboxError(Exception):
    """The sandbox itself could not be set up: never the confined program's fault."""


class HostProcess:
    """A running (or ended) confined program. All times are seconds, all sizes bytes. Use as a context manager, or
    call `kill`.
    """

    def __init__(
        self,
        *,
        popen: "subprocess.Popen[bytes]",
        pid: int,
        pidfd: int,
        output: int,
        confinement: Confinement,
        level: str,
        group: cgroups.Group | None,
        scratch: tempfile.TemporaryDirectory[str] | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        self.pid = pid
        self.level = level
        self.limits = confinement.limits
        self._scratch_sizes = dict(confinement.scratch)
        self._popen = popen
        self._pidfd = pidfd
        self._group = group
        self._scratch = scratch
        self._names = names or {}
        self._verdict: str | None = None
        self._tail = b""
        self._written = 0
        self._peak = 0
        self._final: tuple[float, int | None, int, int] | None = None
        self._lock = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, args=(output,), name=f"sandbox-watch-{pid}", daemon=True)
        self._watcher.start()

    def __enter__(self) -> "HostProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def grouped(self) -> bool:
        """Whether a control group holds the host: memory and processes of the whole tree are limited by the kernel."""
        return self._group is not None

    def alive(self) -> bool:
        """Whether the program still runs."""
        return self._popen.poll() is None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program has ended by itself; its exit status, 128 + n for signal n. Raises TimeoutError."""
        try:
            return _status(self._popen.wait(timeout))
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the host was still running after {timeout} s") from None

    def cpu_seconds(self) -> float:
        """CPU time of the host and all that it started."""
        if self._final is not None:
            return self._final[0]
        counted = self._group.cpu_seconds() if self._group is not None else None
        return counted if counted is not None else processes.cpu_seconds(self.pid)

    def run_delay_seconds(self) -> float:
        """How long the host's living threads waited for a CPU that something else was using: contention, seen from
        outside.
        """
        return processes.run_delay_seconds(self.pid)

    def freeze(self) -> None:
        """Hold the host and all that it started where they are: none of it runs until `thaw`. Harmless on one that has ended.

        Without a control group SIGSTOP does it, which a signal may undo: whoever must know compares its CPU time before and
        after. Raises TimeoutError where it makes processes faster than they are stopped, SandboxError where the kernel does not hold it.
        """
        if self._gone():
            return
        try:
            if self._group is not None and self._group.hold(True):
                return
        except TimeoutError as error:
            raise SandboxError(f"host {self.pid}: {error}") from None
        processes.stop(self.pid, _STOP_SECONDS)

    def thaw(self) -> None:
        """Let a frozen host go on. Raises SandboxError where the kernel does not."""
        if self._gone():
            return
        try:
            if self._group is not None and self._group.hold(False):
                return
        except TimeoutError as error:
            raise SandboxError(f"host {self.pid}: {error}") from None
        processes.go_on(self.pid)

    def bind(self, cpus: Iterable[int]) -> None:
        """Let the host and all that it started run on these processors only, and on each of them."""
        if self._gone():
            return
        if self._group is not None:
            self._group.bind(cpus)
        # What a thread was given before, by its starter or by an earlier call, the kernel intersects with its group's.
        processes.bind(self.pid, cpus)

    def give_way(self, yes: bool) -> None:
        """Let the host and all that it started run only where nobody else would, or as usual again. Raises PermissionError where only
        root may bring them back.
        """
        if not self._gone():
            if self._group is not None:
                self._group.give_way(yes)
            processes.give_way(self.pid, yes)

    def _gone(self) -> bool:
        """Whether the host's first process has ended, so that its number may be somebody else's by now."""
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], 0)[0])

    def memory_peak(self) -> int | None:
        """The most memory that host and children used at once; None where nothing keeps it."""
        if self._final is not None:
            return self._final[1]
        return self._group.memory_peak() if self._group is not None else self._peak or None

    def oom_killed(self) -> bool:
        """Whether a process was ended for using more memory than allowed."""
        if self._verdict is not None and "memory" in self._verdict:
            return True
        return (self._final[2] if self._final is not None else self._group.oom_kills() if self._group else 0) > 0

    def path(self, inside: str) -> str:
        """The path by which the host knows the inside path: the same, except without a sandbox."""
        return renamed(inside, self._names)

    def open_scratch(self, inside: str) -> int:
        """A descriptor of the living host's scratch folder `inside`, for `collect`; the caller closes it.

        Raises ValueError when that is no scratch folder: on any other path the host could have laid a link that leads
        out, while a mount point it can not replace. Raises FileNotFoundError when the host has ended.
        """
        if inside not in self._scratch_sizes:
            raise ValueError(f"{inside} is no scratch folder of this host; it has {sorted(self._scratch_sizes)}")
        path = self.path(inside) if self.level == "none" else f"/proc/{self.pid}/root{inside}"
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Looked at afterwards: while the host lives, its number is nobody else's.
        if self._pidfd < 0 or select.select([self._pidfd], [], [], 0)[0]:
            os.close(descriptor)
            raise FileNotFoundError(f"the host has ended, and {inside} with it")
        return descriptor

    def stderr_tail(self) -> str:
        """The last 16 KiB of what the host wrote to stdout and stderr; of one that has ended, all of it has been read."""
        if not self.alive():
            self._watcher.join(0.2)
        return self._tail.decode(errors="replace")

    def exit_reason(self) -> str | None:
        """Why the host ended, as a sentence without its full stop; None while it runs."""
        if self.alive():
            return None
        if self._verdict is not None:
            return self._verdict
        if self.oom_killed():
            return f"killed: used more than {_size(self.limits.memory_bytes)} of memory"
        status = _status(self._popen.returncode)
        if status < 128:
            reason = "ended by itself" if status == 0 else f"ended with exit status {status}"
        else:
            reason = _signal_sentence(status - 128, self.limits)
        refused = self._final[3] if self._final is not None else self._group.refused_processes() if self._group else 0
        if refused:
            reason += f" after it was refused more than {self.limits.pids} processes and threads"
        return reason

    def kill(self, reason: str = "ended by the judge") -> None:
        """End the host and everything that it started, and return when all of it is gone. Harmless on one that has
        ended.

        `reason` becomes the exit reason if the host was alive. Raises SandboxError if something survives for 20 s.
        """
        with self._lock:
            if self._pidfd < 0:
                return
            if self.alive() and self._verdict is None:
                self._verdict = reason
            self._signal()
            deadline = time.monotonic() + _GONE_SECONDS
            # The first process of a pid namespace becomes a zombie only when every other process in it is gone.
            if not select.select([self._pidfd], [], [], _GONE_SECONDS)[0]:
                raise SandboxError(
                    f"host {self.pid} could not be ended within {_GONE_SECONDS:.0f} s (stuck in the kernel?)"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1)
            self._popen.kill()
            self._popen.wait()
            # bubblewrap may end before its namespace's first process does; that one is then ours to reap (see _become_reaper).
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            while self._group is not None and not self._group.empty():
                self._group.kill()
                if time.monotonic() > deadline:
                    raise SandboxError(f"processes of host {self.pid} could not be ended within {_GONE_SECONDS:.0f} s")
                time.sleep(0.001)
            self._watcher.join()
            if self._group is not None:
                used = self._group.cpu_seconds() or 0.0
                peak, killed, refused = (
                    self._group.memory_peak(),
                    self._group.oom_kills(),
                    self._group.refused_processes(),
                )
                self._final = (used, peak, killed, refused)
                self._group.remove()
            else:
                self._final = (0.0, self._peak or None, 0, 0)
            os.close(self._pidfd)
            self._pidfd = -1
            if self._scratch is not None:
                self._scratch.cleanup()

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._group is not None:
            self._group.kill()
        elif self.level == "none":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _end(self, verdict: str) -> None:
        if self._verdict is None:
            self._verdict = verdict
        self._signal()

    def _scratch_used(self) -> int:
        used = 0
        if self.level == "none":
            return used
        for inside, size in self._scratch_sizes.items():
            with contextlib.suppress(OSError):
                room = os.statvfs(f"/proc/{self.pid}/root{inside}")
                # Until bubblewrap has changed its root the path is ours; no file system of ours has just that size.
                if 0 <= room.f_blocks * room.f_frsize - size < room.f_frsize:
                    used += (room.f_blocks - room.f_bfree) * room.f_frsize
        return used

    def _watch(self, output: int) -> None:
        """Drain the output so that a chatty host never blocks, and end one that floods; without a memory cgroup,
        watch memory as well.
        """
        flooded = f"killed: wrote more than {_size(self.limits.output_bytes)} to stdout and stderr"
        timeout = None if self._group is not None else _WATCH_SECONDS
        try:
            while True:
                ready, _, _ = select.select([output], [], [], timeout)
                if ready:
                    block = os.read(output, 65536)
                    if not block:
                        return
                    self._tail = (self._tail + block)[-_TAIL_BYTES:]
                    self._written += len(block)
                    if self._written > self.limits.output_bytes:
                        self._end(flooded)
                        return
                if timeout is not None:
                    used = processes.memory_bytes(self.pid) + self._scratch_used()
                    self._peak = max(self._peak, used)
                    if used > self.limits.memory_bytes:
                        self._end(f"killed: used more than {_size(self.limits.memory_bytes)} of memory")
                        return
        finally:
            os.close(output)


def renamed(word: str, names: dict[str, str]) -> str:
    """`word` with the longest of the paths in `names` that it starts with replaced by what stands for it."""
    for inside in sorted(names, key=len, reverse=True):
        if word == inside or word.startswith(inside.rstrip("/") + "/"):
            return names[inside] + word[len(inside) :]
    return word


def _status(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _signal_sentence(number: int, limits: Limits) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    meanings: dict[int, str] = {
        signal.SIGSEGV: ": touched memory that it may not, for example wrote to a read-only input",
        signal.SIGBUS: ": touched memory behind the end of a file, or its scratch space is full",
        signal.SIGSYS: ": a refused system call",
        signal.SIGXFSZ: f": wrote a file larger than {_size(limits.file_bytes)}",
        signal.SIGABRT: ": it aborted itself",
        signal.SIGFPE: ": an arithmetic error such as an integer division by zero",
        signal.SIGILL: ": an instruction that this processor does not have",
    }
    return f"ended by signal {number} ({name}){meanings.get(number, '')}"


def _size(count: int) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", 1024)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
