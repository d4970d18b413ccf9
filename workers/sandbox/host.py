"""Start a confined program, watch it from outside, say in a sentence how it ended, and end all of it."""

import contextlib
import ctypes
import marshal
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from workers.sandbox import bubblewrap, cgroups, processes, seccomp
from workers.sandbox.confinement import FIRST_UID, GIB, MIB, Confinement, Limits

_LAUNCHER = Path(__file__).with_name("launcher.py")
_STAGE = "/run/swapbench"
_TAIL_BYTES = 16 * 1024
_START_SECONDS = 10.0
_GONE_SECONDS = 20.0
_WATCH_SECONDS = 0.1
# Address space beyond the memory limit that an interpreter with PyTorch maps without using it.
_ADDRESS_SLACK = 12 * GIB
_PR_SET_CHILD_SUBREAPER = 36

_BECOME_WITH_SOCKET = (
    "import os, sys; os.dup2(int(sys.argv[1]), int(sys.argv[2])); os.execvp(sys.argv[3], sys.argv[3:])"
)

# The kernel sends a parent-death signal when the *thread* that forked ends, so every host is forked by one thread that
# lives as long as this process does.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-fork")


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
        renamed: dict[str, str] | None = None,
    ) -> None:
        self.pid = pid
        self.level = level
        self.limits = confinement.limits
        self._scratch_paths = frozenset(confinement.scratch)
        self._popen = popen
        self._pidfd = pidfd
        self._group = group
        self._scratch = scratch
        self._renamed = renamed or {}
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
        return _rename(inside, self._renamed)

    def open_scratch(self, inside: str) -> int:
        """A descriptor of the living host's scratch folder `inside`, for `collect`; the caller closes it.

        Raises ValueError when that is no scratch folder: on any other path the host could have laid a link that leads
        out, while a mount point it can not replace.
        """
        if inside not in self._scratch_paths:
            raise ValueError(f"{inside} is no scratch folder of this host; it has {sorted(self._scratch_paths)}")
        path = self.path(inside) if self.level == "none" else f"/proc/{self.pid}/root{inside}"
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def stderr_tail(self) -> str:
        """The last 16 KiB of what the host wrote to stdout and stderr."""
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
                    used = processes.memory_bytes(self.pid)
                    self._peak = max(self._peak, used)
                    if used > self.limits.memory_bytes:
                        self._end(f"killed: used more than {_size(self.limits.memory_bytes)} of memory")
                        return
        finally:
            os.close(output)


def spawn(confinement: Confinement, level: str, *, unconfined: bool = False) -> HostProcess:
    """Start the program at `level` and return when bubblewrap has made its namespaces.

    The caller keeps its descriptor of the socket, and should close it. Raises SandboxError when the sandbox can not be
    set up. Level "none" must be asked for by `unconfined=True` as well, so that no configuration can lead to it.
    """
    if level == "none":
        if not unconfined:
            raise SandboxError(
                "refused to start contributor code without a sandbox; only `swapbench check --no-sandbox` may"
            )
        return _spawn_unconfined(confinement)
    if level not in ("full", "rlimits", "user"):
        raise SandboxError(f"there is no isolation level {level!r}; levels are full, rlimits, user")
    _become_reaper()
    group = _group(confinement.limits, level)
    try:
        return _spawn_confined(confinement, level, group)
    except BaseException:
        if group is not None:
            group.kill()
            group.remove()
        raise


@lru_cache(maxsize=1)
def _become_reaper() -> None:
    """Have orphans below this process handed to it instead of to process 1, which in a container may reap nobody.

    Unreaped processes would count against the hosts' uid for ever.
    """
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SandboxError("the kernel refused PR_SET_CHILD_SUBREAPER")


def _group(limits: Limits, level: str) -> cgroups.Group | None:
    if level == "rlimits":
        return None
    tree = cgroups.find()
    if isinstance(tree, cgroups.Unavailable):
        if level == "full":
            raise SandboxError(f"isolation level full needs control groups: {tree.why}; {tree.mend}")
        return None
    try:
        return cgroups.Group(tree, limits)
    except OSError as error:
        raise SandboxError(f"the kernel refused a limit of the control group: {error}") from error


def _spawn_confined(confinement: Confinement, level: str, group: cgroups.Group | None) -> HostProcess:
    program = find_bubblewrap()
    if program is None:
        raise SandboxError("bubblewrap (the program bwrap) is not installed; install it: apt install bubblewrap")
    uid = FIRST_UID + confinement.slot if level != "user" else None
    staged = uid is not None
    sources = {path: f"{_STAGE}/{n}" if staged else path for n, path in enumerate(confinement.readonly)}
    for path in confinement.readonly:
        if not os.path.exists(path):
            raise SandboxError(f"the host should see {path}, which does not exist")
    prepared = {path: f"{_STAGE}/s{n}" for n, path in enumerate(confinement.scratch)} if staged else {}
    options = bubblewrap.arguments(
        confinement, sources=sources, scratch=prepared, cgroup_namespace=os.path.exists("/proc/self/ns/cgroup")
    )
    deny = seccomp.MEMORY_FILES if group is None else frozenset[str]()
    if staged:
        os.makedirs(_STAGE, mode=0o755, exist_ok=True)
    with contextlib.ExitStack() as stack:
        status_read, status_write = os.pipe()
        status = stack.enter_context(open(status_read, "rb", buffering=0))
        output_read, output_write = os.pipe()
        inherited = {
            "args": _memory_file(stack, "\0".join(options).encode() + b"\0"),
            "seccomp": _memory_file(stack, seccomp.program(deny=deny)),
            "status": status_write,
        }
        plan: dict[str, Any] = inherited | {
            "args_at": bubblewrap.ARGS_FD,
            "seccomp_at": bubblewrap.SECCOMP_FD,
            "status_at": bubblewrap.STATUS_FD,
            "socket": confinement.socket,
            "socket_at": confinement.socket_number,
            "bwrap": program,
            "argv": list(confinement.argv),
            "parent": os.getpid(),
            "cgroups": group.joins if group is not None else [],
            "cpus": sorted(confinement.limits.cpus or ()),
            "rlimits": _rlimits(confinement, uid is not None, group is not None),
            "stage": _STAGE if staged else None,
            "binds": list(sources.items()) if staged else [],
            "scratch": [
                (prepared[path], size, confinement.scratch_inodes) for path, size in confinement.scratch.items()
            ]
            if staged
            else [],
            "uid": uid,
        }
        planned = _memory_file(stack, marshal.dumps(plan))
        passed = [planned, *inherited.values(), *([confinement.socket] if confinement.socket is not None else [])]
        try:
            popen = _forker.submit(
                _start, [sys.executable, "-I", "-S", str(_LAUNCHER), str(planned)], {}, passed, output_write
            ).result()
        except OSError as error:
            os.close(output_read)
            raise SandboxError(f"the sandbox's launcher could not be started: {error}") from error
        finally:
            os.close(status_write)
            os.close(output_write)
        try:
            pid = _first_process(status, popen)
            pidfd = _hold(pid, popen)
        except SandboxError as error:
            popen.kill()
            popen.wait()
            said = _read_now(output_read).decode(errors="replace").strip()
            os.close(output_read)
            raise SandboxError(f"{error}: {said}" if said else str(error)) from None
    return HostProcess(
        popen=popen, pid=pid, pidfd=pidfd, output=output_read, confinement=confinement, level=level, group=group
    )


def _spawn_unconfined(confinement: Confinement) -> HostProcess:
    """The program as a plain child: same arguments, environment, socket and limits on output; nothing is hidden from
    it.
    """
    scratch = tempfile.TemporaryDirectory(prefix="swapbench-unconfined-")
    renamed = {inside: source for source, inside in confinement.readonly.items()}
    for n, inside in enumerate(confinement.scratch):
        renamed[inside] = os.path.join(scratch.name, str(n))
        os.mkdir(renamed[inside])
    argv = [_rename(word, renamed) for word in confinement.argv]
    env = {
        name: ":".join(_rename(word, renamed) for word in value.split(":")) for name, value in confinement.env.items()
    }
    output_read, output_write = os.pipe()
    passed: list[int] = []
    with contextlib.ExitStack() as stack:
        if confinement.socket is not None:
            passed.append(confinement.socket)
            numbers = [str(confinement.socket), str(confinement.socket_number)]
            argv = [sys.executable, "-I", "-S", "-c", _BECOME_WITH_SOCKET, *numbers, *argv]
        stack.callback(os.close, output_write)
        try:
            popen = _forker.submit(_start, argv, env, passed, output_write).result()
        except OSError as error:
            os.close(output_read)
            scratch.cleanup()
            raise SandboxError(f"{confinement.argv[0]} could not be started: {error}") from error
    return HostProcess(
        popen=popen,
        pid=popen.pid,
        pidfd=os.pidfd_open(popen.pid),
        output=output_read,
        confinement=confinement,
        level="none",
        group=None,
        scratch=scratch,
        renamed=renamed,
    )


def find_bubblewrap() -> str | None:
    """The path of bwrap; None when it is not installed. Looked for in system folders only, never in PATH of whoever
    starts us.
    """
    for folder in ("/usr/bin", "/usr/local/bin", "/bin", "/run/current-system/sw/bin"):
        if os.access(f"{folder}/bwrap", os.X_OK):
            return f"{folder}/bwrap"
    return None


def _start(argv: list[str], env: dict[str, str], passed: list[int], output: int) -> "subprocess.Popen[bytes]":
    # A session of its own: a Ctrl-C in the judge's terminal is the judge's to handle.
    return subprocess.Popen(
        argv,
        env=env,
        cwd="/",
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _rlimits(confinement: Confinement, own_uid: bool, memory_counted: bool) -> dict[str, int]:
    limits = confinement.limits
    values = {
        # Not 0: a core_pattern that is a pipe starts its program all the same; 1 is what core(5) has for "not even
        # that".
        "RLIMIT_CORE": 1,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_MEMLOCK": 8 * MIB,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NICE": 0,
        "RLIMIT_RTPRIO": 0,
        "RLIMIT_SIGPENDING": 1024,
    }
    if own_uid:
        # bubblewrap's own two processes count, too.
        values["RLIMIT_NPROC"] = limits.pids + 2
    if not memory_counted:
        values["RLIMIT_DATA"] = limits.memory_bytes + GIB
        if not confinement.devices:
            # A GPU driver reserves address space by the terabyte.
            values["RLIMIT_AS"] = limits.memory_bytes + _ADDRESS_SLACK
    return values


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    number = os.memfd_create("sandbox")
    stack.callback(os.close, number)
    os.write(number, content)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _first_process(status: Any, popen: "subprocess.Popen[bytes]") -> int:
    """The pid, as seen from here, of the first process of the host's pid namespace."""
    text = b""
    deadline = time.monotonic() + _START_SECONDS
    while b"\n" not in text:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([status], [], [], left)[0]:
            raise SandboxError(f"the sandbox was not up after {_START_SECONDS:.0f} s")
        block = status.read(4096)
        if not block:
            popen.wait()
            raise SandboxError(f"the sandbox could not be set up (bubblewrap ended with {popen.returncode})")
        text += block
    line = text.splitlines()[0]
    if not line.startswith(b"{"):
        raise SandboxError(f"the sandbox could not be set up: {line.decode(errors='replace')}")
    return int(msgspec.json.decode(line)["child-pid"])


def _hold(pid: int, popen: "subprocess.Popen[bytes]") -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        popen.wait()
        raise SandboxError(
            f"the sandbox ended while it was set up (bubblewrap ended with {popen.returncode})"
        ) from None
    # The number could have been given to another process in between; a child of our own child it then is not.
    if processes.parent(pid) != popen.pid:
        os.close(pidfd)
        raise SandboxError("the sandbox ended while it was set up")
    return pidfd


def _read_now(number: int) -> bytes:
    os.set_blocking(number, False)
    try:
        return os.read(number, 65536)
    except BlockingIOError:
        return b""


def _rename(word: str, renamed: dict[str, str]) -> str:
    for inside in sorted(renamed, key=len, reverse=True):
        if word == inside or word.startswith(inside.rstrip("/") + "/"):
            return renamed[inside] + word[len(inside) :]
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
