"""Runs as its own small process between the judge and bubblewrap: enters limits, stages the mounts, gives up root,
becomes bubblewrap.

Started by path with `python -I -S`, so it imports the standard library only, and as little of it as will do: its start
is part of every host's. Its plan is a marshalled dict (same interpreter on both sides) in the descriptor named on its
command line; failures are written as one line to the status descriptor.
"""

import ctypes
import errno
import fcntl
import marshal
import os
import resource
import stat
import struct
import sys

# Known to type checkers by its name; `typing` itself would double the time that this process takes to start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_SIGKILL = 9
_CLONE_NEWUSER = 0x10000000
_CAPABILITY_VERSION_3 = 0x20080522
# Effective and permitted: CAP_SYS_ADMIN, number 21.
_ADMIN = (1 << 21, 1 << 21)
FAILED = "launcher: "

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with open(int(sys.argv[1]), "rb") as handle:
        plan: dict[str, Any] = marshal.load(handle)
    try:
        _enter(plan)
        os.execve(plan["bwrap"], ["bwrap", "--args", str(plan["places"]["args"]), "--", *plan["argv"]], {})
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        os.write(plan["given"]["status"], f"{FAILED}{error.strerror}{where}\n".encode())
        os._exit(125)


def _enter(plan: "dict[str, Any]") -> None:
    _die_with(plan["parent"])
    for path in plan["cgroups"]:
        with open(path, "w") as handle:
            handle.write("0")
    with open("/proc/self/oom_score_adj", "w") as handle:
        handle.write("900")
    if plan["cpus"]:
        os.sched_setaffinity(0, plan["cpus"])
    if plan["stage"]:
        _stage(plan)
    # Before the limit on descriptors, which may be lower than the numbers used on the way.
    _place_descriptors(plan)
    for name, value in plan["rlimits"].items():
        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    os.umask(0o077)
    if plan["uid"] is not None:
        if plan["given_namespace"]:
            os.dup2(_user_namespace(plan["uid"], plan["inside_uid"]), plan["places"]["userns"], inheritable=True)
        _become(plan["uid"])
        _may_read(plan["binds"], plan["uid"])
        # A change of uid clears the death signal.
        _die_with(plan["parent"])
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _may_read(binds: "list[tuple[str, str]]", uid: int) -> None:
    for source, target in binds:
        if not os.access(target, os.R_OK | (os.X_OK if os.path.isdir(target) else 0)):
            raise OSError(errno.EACCES, f"uid {uid} may not read it; make it readable for others", source)


def _user_namespace(uid: int, inside: int) -> int:
    """A descriptor of a new user namespace that `uid` owns and in which it is called `inside`.

    Made while there are privileges to make it with, for kernels that refuse it to bubblewrap, which has none.
    """
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go[1])
        try:
            # Its owner is whoever makes it, so the child becomes that, and keeps for a moment the right to make it.
            _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keepcaps")
            _become(uid)
            _check(
                _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *_ADMIN, 0, 0, 0, 0)),
                "capset",
            )
            _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        except OSError as error:
            os.write(ready[1], f"{error.strerror} ({error.filename})".encode())
        os._exit(0)
    os.close(ready[1])
    said = os.read(ready[0], 1000)
    try:
        if said != b"x":
            raise OSError(errno.EPERM, f"no user namespace could be made: {said.decode()}")
        for name, line in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {uid} 1")):
            with open(f"/proc/{child}/{name}", "w") as handle:
                handle.write(line)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    finally:
        for number in (ready[0], *go):
            os.close(number)
        os.waitpid(child, 0)


def _die_with(parent: int) -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(125)


def _stage(plan: "dict[str, Any]") -> None:
    """Bind every source to a path that the unprivileged uid can enter, in a mount namespace that nobody else sees,
    and mount the scratch.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    stage, uid = plan["stage"], plan["uid"]
    _mount("tmpfs", stage, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=4096,mode=0755")
    for source, target in plan["binds"]:
        if stat.S_ISDIR(os.stat(source).st_mode):
            os.mkdir(target, 0o755)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(source, target, None, _MS_BIND | _MS_REC)
    for target, size, inodes in plan["scratch"]:
        os.mkdir(target, 0o755)
        options = f"size={size},nr_inodes={inodes},mode=0700,uid={uid},gid={uid}"
        _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def _place_descriptors(plan: "dict[str, Any]") -> None:
    """Descriptors 0-2, the socket at its number, bubblewrap's own at theirs, and no other."""
    given, places = plan["given"], plan["places"]
    # By way of numbers above all of both, so that none is overwritten before it has moved.
    spare = {name: fcntl.fcntl(number, fcntl.F_DUPFD, 200) for name, number in given.items()}
    socket = fcntl.fcntl(plan["socket"], fcntl.F_DUPFD, 200) if plan["socket"] is not None else None
    os.closerange(3, 200)
    for name, number in spare.items():
        os.dup2(number, places[name], inheritable=True)
        given[name] = places[name]
    if socket is not None:
        os.dup2(socket, plan["socket_at"], inheritable=True)
    os.closerange(200, 200 + len(given) + 1)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [value.encode() if value is not None else None for value in (source, target, kind)]
    result = _libc.mount(
        encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), options.encode() if options else None
    )
    _check(result, source if source and source.startswith("/") else target)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


if __name__ == "__main__":
    main()
