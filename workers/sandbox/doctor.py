"""What this machine has and lacks for the sandbox, and how to mend each; `swapbench doctor` renders it."""

import os
import pwd
import subprocess
from pathlib import Path

from workers.sandbox import bubblewrap, cgroups, processes, seccomp
from workers.sandbox.confinement import FIRST_UID, SLOTS
from workers.sandbox.isolation import MEANING, levels
from workers.sandbox.kernel import Check, user_namespaces

_OLDEST_BUBBLEWRAP = (0, 6)


def checks() -> list[Check]:
    """Every check of the sandbox, the outcome (which levels there are) last."""
    return [_bubblewrap(), *user_namespaces(), _seccomp(), _cgroups(), _uids(), *_levels()]


def _bubblewrap() -> Check:
    program = bubblewrap.find()
    mend = "apt install bubblewrap (dnf, pacman, apk: the same name)"
    if program is None:
        return Check("bubblewrap", False, "not installed", mend)
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=10, env={}, check=False
    ).stdout.strip()
    try:
        version = tuple(int(part) for part in said.split()[-1].split("."))
    except (ValueError, IndexError):
        return Check("bubblewrap", False, f"{program} says {said!r}, which is no version", mend)
    if version < _OLDEST_BUBBLEWRAP:
        return Check("bubblewrap", False, f"{said}, too old", "install bubblewrap 0.6 or newer")
    if os.stat(program).st_mode & 0o4000:
        return Check("bubblewrap", False, f"{said}, installed setuid root", f"chmod u-s {program}")
    return Check("bubblewrap", True, f"{said} at {program}")


def _seccomp() -> Check:
    name = "system-call filter"
    try:
        size = len(seccomp.program()) // 8
    except seccomp.UnsupportedArchitecture as error:
        return Check(name, False, str(error), "run the worker on x86_64 or aarch64")
    if not any(line.startswith("Seccomp:") for line in Path("/proc/self/status").read_text().splitlines()):
        return Check(name, False, "the kernel has no seccomp", "use a kernel with CONFIG_SECCOMP_FILTER")
    return Check(name, True, f"{size} instructions for {os.uname().machine}")


def _cgroups() -> Check:
    name = "control groups"
    tree = cgroups.find()
    if isinstance(tree, cgroups.Unavailable):
        return Check(name, False, f"{tree.why}; memory is watched from outside instead", tree.mend)
    return Check(name, True, tree.describe())


def _uids() -> Check:
    name = "uid of its own"
    if os.geteuid() != 0:
        return Check(
            name, False, "the worker does not run as root, so hosts run under its own uid", "run the worker as root"
        )
    known = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    taken = sorted(uid for uid in range(FIRST_UID, FIRST_UID + SLOTS) if uid in known)
    if taken:
        return Check(name, False, f"uid {taken[0]} belongs to {known[taken[0]]}", f"free the uids from {FIRST_UID} on")
    running = list(processes.processes_of(FIRST_UID))
    return Check(
        name, True, f"from {FIRST_UID} on" + (f"; {len(running)} processes run as {FIRST_UID} now" if running else "")
    )


def _levels() -> list[Check]:
    found = []
    for level in levels():
        if level.name != "none":
            meaning = MEANING[level.name]
            found.append(Check(f"isolation {level.name}", level.available, level.why_not or meaning, level.how_to_mend))
    return found
