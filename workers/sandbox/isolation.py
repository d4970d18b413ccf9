"""Isolation levels: which there are, which this machine can give, and the strongest of them."""

import os
import subprocess
from collections.abc import Mapping
from functools import lru_cache

import msgspec

from workers.sandbox import bubblewrap, cgroups
from workers.sandbox.confinement import Confinement, interpreter_view
from workers.sandbox.host import SandboxError
from workers.sandbox.kernel import user_namespaces
from workers.sandbox.start import spawn

# Strongest first. Every outcome carries its level, and the maintainers' policy says which levels count.
NAMES = ("full", "rlimits", "user", "none")
MEANING = {
    "full": "bubblewrap, system-call filter, a uid of its own for each accelerator, control groups",
    "rlimits": "as full, but memory is watched from outside and limited for each process only",
    "user": "bubblewrap and system-call filter under the worker's own uid (a laptop without root)",
    "none": "no sandbox at all (only `swapbench check --no-sandbox`)",
}
CHOICE = "SWAPBENCH_ISOLATION"


class Level(msgspec.Struct, frozen=True):
    """One isolation level on this machine; `why_not` and `how_to_mend` are sentences, empty where it is available."""

    name: str
    available: bool
    why_not: str = ""
    how_to_mend: str = ""


class NoLevel(SandboxError):
    """No isolation level can be set up here, so no contributor code is run."""


@lru_cache(maxsize=1)
def levels() -> tuple[Level, ...]:
    """Every level, strongest first, each found out by starting a confined program; the answer is kept for the life
    of this process.
    """
    return (_full(), _rlimits(), _user(), Level("none", True))


def best_level(environment: Mapping[str, str] | None = None) -> str:
    """The name of the strongest level here, or the one that SWAPBENCH_ISOLATION in `environment` demands. Never "none".

    Raises NoLevel with what is missing and how to mend it.
    """
    demanded = (environment if environment is not None else os.environ).get(CHOICE, "")
    confined = [level for level in levels() if level.name != "none"]
    if demanded:
        if demanded not in {level.name for level in confined}:
            raise NoLevel(f"{CHOICE} is {demanded!r}; it may be {', '.join(level.name for level in confined)}")
        confined = [level for level in confined if level.name == demanded]
    for level in confined:
        if level.available:
            return level.name
    reasons = dict.fromkeys(f"{level.name}: {level.why_not}; {level.how_to_mend}" for level in confined)
    raise NoLevel("no isolation level can be set up here. " + " | ".join(reasons))


def _full() -> Level:
    base = _rlimits()
    if not base.available:
        return Level("full", False, base.why_not, base.how_to_mend)
    tree = cgroups.find()
    if isinstance(tree, cgroups.Unavailable):
        return Level("full", False, tree.why, tree.mend)
    return _tried("full")


@lru_cache(maxsize=1)
def _rlimits() -> Level:
    if os.geteuid() != 0:
        return Level(
            "rlimits",
            False,
            "the worker does not run as root, so it can not give hosts a uid of their own",
            "run the worker as root (it gives root up before contributor code starts)",
        )
    return _tried("rlimits")


def _user() -> Level:
    if os.geteuid() == 0:
        return Level(
            "user",
            False,
            "the worker runs as root, whose uid hosts must not have",
            "use full or rlimits, or run as a user",
        )
    return _tried("user")


def _tried(name: str) -> Level:
    """Start `true` at the level; what works is better evidence than any setting read from /proc/sys."""
    if bubblewrap.find() is None:
        return Level(
            name, False, "bubblewrap is not installed", "apt install bubblewrap (dnf, pacman, apk: the same name)"
        )
    view = interpreter_view()
    try:
        with spawn(Confinement(argv=("/usr/bin/true",), readonly=view.readonly, symlinks=view.symlinks), name) as host:
            status = host.wait(10)
            said = host.stderr_tail().strip()
    except (SandboxError, TimeoutError, ValueError) as error:
        return Level(name, False, str(error), _mend_namespaces())
    except subprocess.SubprocessError as error:
        return Level(name, False, str(error), _mend_namespaces())
    if status != 0:
        return Level(name, False, said or f"bubblewrap ended with status {status}", _mend_namespaces())
    return Level(name, True)


def _mend_namespaces() -> str:
    refused = [check.how_to_mend for check in user_namespaces() if not check.ok]
    return refused[0] if refused else "see what `swapbench doctor` says"
