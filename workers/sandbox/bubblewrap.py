"""The argument list for bubblewrap that gives a program the view of a `Confinement`.

Written against bubblewrap 0.8 (Debian 12); every option used has been there since 0.6.
"""

import os
from collections.abc import Mapping, Sequence

from workers.sandbox.confinement import Confinement

# bubblewrap leaves this one open in the program, so that a shell has to close it, and a shell knows one digit only.
USERNS = 9
# The numbers at which the launcher hands bubblewrap its own descriptors; far from the host's, which has only 0, 1, 2
# and its socket.
DESCRIPTORS = {"args": 100, "seccomp": 101, "status": 102, "gate": 103, "userns": USERNS}
INSIDE_UID = 65534

_PLAIN_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_DEVICE_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}


def find() -> str | None:
    """The path of bwrap; None when it is not installed.

    Looked for in system folders only, never in the PATH of whoever starts us.
    """
    for folder in ("/usr/bin", "/usr/local/bin", "/bin", "/run/current-system/sw/bin"):
        if os.access(f"{folder}/bwrap", os.X_OK):
            return f"{folder}/bwrap"
    return None


def command(argv: Sequence[str], *, given_namespace: bool) -> list[str]:
    """What bubblewrap is to run so that in the end `argv` runs, without the descriptor of its user namespace."""
    return ["/bin/sh", "-c", f'exec "$0" "$@" {USERNS}<&-', *argv] if given_namespace else list(argv)


def arguments(
    confinement: Confinement,
    *,
    sources: Mapping[str, str],
    scratch: Mapping[str, str],
    given_namespace: bool,
    cgroup_namespace: bool,
) -> list[str]:
    """Options for `bwrap --args`; the program to run follows on bubblewrap's own command line, which anyone on the
    machine can read.

    `sources` gives for each host path of `confinement.readonly` the path from which bubblewrap can bind it; `scratch`
    gives for each scratch path a prepared tmpfs to bind, and where it has none bubblewrap mounts one itself. With
    `given_namespace` it enters the user namespace that it inherits, else it makes one.
    """
    args = ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    args += ["--userns", str(DESCRIPTORS["userns"])] if given_namespace else ["--unshare-user"]
    args += ["--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)]
    args += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--hostname", "host"]
    if cgroup_namespace:
        args.append("--unshare-cgroup")
    args += ["--seccomp", str(DESCRIPTORS["seccomp"]), "--json-status-fd", str(DESCRIPTORS["status"])]
    args += ["--block-fd", str(DESCRIPTORS["gate"])]
    for name, value in confinement.env.items():
        args += ["--setenv", name, value]
    args += ["--proc", "/proc"]
    # Process 1 is bubblewrap's own reaper, under the host's uid: a host that wrote to its memory could undo the
    # reaper's death signal.
    args += ["--perms", "0000", "--size", "4096", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]
    # Not `--dev`: that brings a devpts (terminals are a resource of the whole machine) and a writable /dev/shm of no
    # size.
    args += ["--size", "65536", "--tmpfs", "/dev"]
    for device in (*_PLAIN_DEVICES, *confinement.devices):
        args += ["--dev-bind", device, device]
    for inside, target in (_DEVICE_LINKS | dict(confinement.symlinks)).items():
        args += ["--symlink", target, inside]
    mounts = {inside: ["--ro-bind", sources[source], inside] for source, inside in confinement.readonly.items()}
    for inside, size in confinement.scratch.items():
        if inside in scratch:
            mounts[inside] = ["--bind", scratch[inside], inside]
        else:
            mounts[inside] = ["--perms", "0700", "--size", str(size), "--tmpfs", inside]
    # A parent before what lies in it, or the parent's mount would hide it.
    for inside in sorted(mounts):
        args += mounts[inside]
    # Last, since mount points are made in them.
    return [*args, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", confinement.working_directory]
