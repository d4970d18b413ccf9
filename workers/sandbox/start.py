"""Start a program in its confinement: make its group, write down the plan, run the launcher, and hold what comes of it."""

import contextlib
import ctypes
import marshal
import os
import platform
import resource
import select
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from workers.sandbox import bubblewrap, cgroups, kernel, processes, seccomp
from workers.sandbox.confinement import FIRST_UID, GIB, MIB, Confinement, Limits
from workers.sandbox.host import HostProcess, SandboxError, renamed

_LAUNCHER = Path(__file__).with_name("launcher.py")
_BECOME_WITH_SOCKET = (
    "import os, sys; os.dup2(int(sys.argv[1]), int(sys.argv[2])); os.execvp(sys.argv[3], sys.argv[3:])"
)
_STAGE = "/run/swapbench"
_START_SECONDS = 10.0
# Address space beyond the memory limit that an interpreter with PyTorch maps without using it.
_ADDRESS_SLACK = 12 * GIB
# bubblewrap's own two processes count as the host's.
_OWN_PROCESSES = 2
_PR_SET_CHILD_SUBREAPER = 36

# The kernel sends a parent-death signal when the *thread* that forked ends, so every host is forked by one thread that
# lives as long as this process does.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-fork")


def spawn(confinement: Confinement, level: str, *, unconfined: bool = False) -> HostProcess:
    """Start the program at `level` and return when its namespaces are made and its limits set.

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
    program = bubblewrap.find()
    if program is None:
        raise SandboxError("bubblewrap (the program bwrap) is not installed; install it: apt install bubblewrap")
    for path in confinement.readonly:
        if not os.path.exists(path):
            raise SandboxError(f"the host should see {path}, which does not exist")
    _become_reaper()
    group = _group(confinement.limits, level)
    try:
        return _spawn_confined(program, confinement, level, group)
    except BaseException:
        if group is not None:
            group.kill()
            group.remove()
        raise


def _spawn_confined(program: str, confinement: Confinement, level: str, group: cgroups.Group | None) -> HostProcess:
    plan, options = _plan(program, confinement, level, group)
    deny = seccomp.MEMORY_FILES if group is None else frozenset[str]()
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        # The gate keeps the first process of the namespace waiting until it is held and limited.
        status, gate, output = (os.pipe() for _ in range(3))
        ours.callback(os.close, status[0])
        ours.callback(os.close, gate[1])
        for number in (status[1], gate[0], output[1]):
            theirs.callback(os.close, number)
        given = {
            "args": _memory_file(theirs, "\0".join(options).encode() + b"\0"),
            "seccomp": _memory_file(theirs, seccomp.program(deny=deny, loopback=confinement.loopback)),
            "status": status[1],
            "gate": gate[0],
        }
        planned = _memory_file(theirs, marshal.dumps(plan | {"given": given}))
        passed = [planned, *given.values(), *([confinement.socket] if confinement.socket is not None else [])]
        try:
            popen = _fork([sys.executable, "-I", "-S", str(_LAUNCHER), str(planned)], {}, passed, output[1])
            theirs.close()
            pidfd = -1
            try:
                pid = _first_process(status[0], popen)
                pidfd = _hold(pid, popen)
                if level == "user" and _counts_by_namespace():
                    count = confinement.limits.pids + _OWN_PROCESSES
                    resource.prlimit(pid, resource.RLIMIT_NPROC, (count, count))
                os.write(gate[1], b"x")
            except (SandboxError, OSError) as error:
                popen.kill()
                popen.wait()
                if pidfd >= 0:
                    os.close(pidfd)
                said = _read_now(output[0])
                raise SandboxError(f"{error}: {said}" if said else str(error)) from None
        except BaseException:
            os.close(output[0])
            raise
    return HostProcess(
        popen=popen, pid=pid, pidfd=pidfd, output=output[0], confinement=confinement, level=level, group=group
    )


def _plan(
    program: str, confinement: Confinement, level: str, group: cgroups.Group | None
) -> tuple[dict[str, Any], list[str]]:
    """What the launcher has to do, and the options for bubblewrap that fit it."""
    uid = FIRST_UID + confinement.slot if level != "user" else None
    sources = {path: path for path in confinement.readonly}
    scratch: dict[str, str] = {}
    if uid is not None:
        os.makedirs(_STAGE, mode=0o755, exist_ok=True)
        sources = {path: f"{_STAGE}/{n}" for n, path in enumerate(confinement.readonly)}
        scratch = {path: f"{_STAGE}/s{n}" for n, path in enumerate(confinement.scratch)}
    given = uid is not None and kernel.refuses_the_unprivileged()
    options = bubblewrap.arguments(
        confinement,
        sources=sources,
        scratch=scratch,
        given_namespace=given,
        cgroup_namespace=os.path.exists("/proc/self/ns/cgroup"),
    )
    sizes = [(scratch[path], size, confinement.scratch_inodes) for path, size in confinement.scratch.items() if scratch]
    plan = {
        "places": bubblewrap.DESCRIPTORS,
        "socket": confinement.socket,
        "socket_at": confinement.socket_number,
        "bwrap": program,
        "argv": bubblewrap.command(confinement.argv, given_namespace=given),
        "parent": os.getpid(),
        "cgroups": group.joins if group is not None else [],
        "cpus": sorted(confinement.limits.cpus or ()),
        "rlimits": _rlimits(confinement, own_uid=uid is not None, grouped=group is not None),
        "stage": _STAGE if uid is not None else None,
        "binds": list(sources.items()),
        "scratch": sizes,
        "uid": uid,
        "given_namespace": given,
        "inside_uid": bubblewrap.INSIDE_UID,
    }
    return plan, options


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


def _rlimits(confinement: Confinement, *, own_uid: bool, grouped: bool) -> dict[str, int]:
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
        values["RLIMIT_NPROC"] = limits.pids + _OWN_PROCESSES
    if not grouped:
        values["RLIMIT_DATA"] = limits.memory_bytes + GIB
        if not confinement.devices:
            # A GPU driver reserves address space by the terabyte.
            values["RLIMIT_AS"] = limits.memory_bytes + _ADDRESS_SLACK
    return values


@lru_cache(maxsize=1)
def _counts_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts the processes of a user namespace (Linux 5.14), not all that the user has anywhere."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(digit for digit in minor if digit.isdigit()))) >= (5, 14)


@lru_cache(maxsize=1)
def _become_reaper() -> None:
    """Have orphans below this process handed to it instead of to process 1, which in a container may reap nobody.

    Unreaped processes would count against the hosts' uid for ever.
    """
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SandboxError("the kernel refused PR_SET_CHILD_SUBREAPER")


def _spawn_unconfined(confinement: Confinement) -> HostProcess:
    """The program as a plain child with its arguments, environment and socket; nothing is hidden from it."""
    scratch = tempfile.TemporaryDirectory(prefix="swapbench-unconfined-")
    names = {inside: source for source, inside in confinement.readonly.items()}
    for n, inside in enumerate(confinement.scratch):
        names[inside] = os.path.join(scratch.name, str(n))
        os.mkdir(names[inside])
    argv = [renamed(word, names) for word in confinement.argv]
    env = {name: ":".join(renamed(word, names) for word in value.split(":")) for name, value in confinement.env.items()}
    passed: list[int] = []
    if confinement.socket is not None:
        passed.append(confinement.socket)
        numbers = [str(confinement.socket), str(confinement.socket_number)]
        argv = [sys.executable, "-I", "-S", "-c", _BECOME_WITH_SOCKET, *numbers, *argv]
    output_read, output_write = os.pipe()
    try:
        popen = _fork(argv, env, passed, output_write)
    except SandboxError:
        os.close(output_read)
        scratch.cleanup()
        raise
    finally:
        os.close(output_write)
    return HostProcess(
        popen=popen,
        pid=popen.pid,
        pidfd=os.pidfd_open(popen.pid),
        output=output_read,
        confinement=confinement,
        level="none",
        group=None,
        scratch=scratch,
        names=names,
    )


def _fork(argv: list[str], env: dict[str, str], passed: list[int], output: int) -> "subprocess.Popen[bytes]":
    def start() -> "subprocess.Popen[bytes]":
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

    try:
        return _forker.submit(start).result()
    except OSError as error:
        raise SandboxError(f"{argv[0]} could not be started: {error}") from error


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    number = os.memfd_create("sandbox")
    stack.callback(os.close, number)
    os.write(number, content)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _first_process(status: int, popen: "subprocess.Popen[bytes]") -> int:
    """The pid, as seen from here, of the first process of the host's pid namespace."""
    text = b""
    deadline = time.monotonic() + _START_SECONDS
    while b"\n" not in text:
        if not select.select([status], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise SandboxError(f"the sandbox was not up after {_START_SECONDS:.0f} s")
        block = os.read(status, 4096)
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


def _read_now(number: int) -> str:
    os.set_blocking(number, False)
    try:
        return os.read(number, 65536).decode(errors="replace").strip()
    except BlockingIOError:
        return ""
