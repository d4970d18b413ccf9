"""Control groups: where a worker may make them, and what it does to get there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import HERE
from workers.sandbox import MIB, Limits, cgroups

ROOT = HERE.parent.parent

# Enters the group named on its command line, alone or with a child of its own, and asks for room in it.
WORKER = """
import json, os, subprocess, sys
from pathlib import Path
from workers.sandbox import cgroups
home = Path(sys.argv[1])
(home / "cgroup.procs").write_text("0")
with subprocess.Popen(["/bin/sleep", "600"]) as child:
    moved = cgroups._make_room(home)
    members = [sorted(cgroups._members(place)) for place in (home, home / "swapbench-worker")]
    print(json.dumps([moved, members, sorted([os.getpid(), child.pid])]))
    child.kill()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty version 2 group of this machine."""
    mount = cgroups._mounts().get("")
    if mount is None or not os.access(mount / "cgroup.procs", os.W_OK):
        pytest.xfail("this machine gives no writable cgroup version 2")
    folder = mount / f"test-room-{os.getpid()}"
    folder.mkdir()
    yield folder
    for place in (folder / "swapbench-worker", folder):
        if place.exists():
            _remove(place)


def test_worker_alone_in_its_group_moves_itself_to_a_leaf(home: Path) -> None:
    moved, (left, leaf), own = _ask_for_room(home)
    assert (moved, left, leaf) == (True, [], own)


def test_worker_that_shares_its_group_moves_nobody(home: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        (home / "cgroup.procs").write_text(str(stranger.pid))
        moved, (left, leaf), own = _ask_for_room(home)
        stranger.kill()
    assert (moved, left, leaf) == (False, sorted([*own, stranger.pid]), [])
    assert not (home / "swapbench-worker").exists()


def test_limits_are_what_the_kernel_was_told(strongest: str) -> None:
    tree = cgroups.find()
    if isinstance(tree, cgroups.Unavailable):
        assert strongest != "full"
        return
    group = cgroups.Group(tree, Limits(memory_bytes=64 * MIB, pids=17, cpus=frozenset({min(os.sched_getaffinity(0))})))
    try:
        memory = tree.homes["memory"] / group.name
        name = "memory.max" if tree.version == 2 else "memory.limit_in_bytes"
        assert (memory / name).read_text().strip() == str(64 * MIB)
        assert (tree.homes["pids"] / group.name / "pids.max").read_text().strip() == "17"
        if "cpuset" in tree.homes:
            cpus = (tree.homes["cpuset"] / group.name / "cpuset.cpus").read_text().strip()
            assert cpus == str(min(os.sched_getaffinity(0)))
        assert group.empty()
        assert (group.oom_kills(), group.refused_processes()) == (0, 0)
    finally:
        group.remove()
    assert not memory.exists()


def test_groups_of_living_judges_are_left_alone(strongest: str) -> None:
    tree = cgroups.find()
    if isinstance(tree, cgroups.Unavailable):
        assert strongest != "full"
        return
    group = cgroups.Group(tree, Limits())
    try:
        cgroups.find()
        assert (tree.homes["memory"] / group.name).is_dir()
    finally:
        group.remove()


def test_without_anything_mounted_it_is_said_what_to_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_mounts", dict)
    found = cgroups.find()
    assert isinstance(found, cgroups.Unavailable)
    assert found.why == "no writable control group for memory and pids"
    assert "mount cgroup version 2" in found.mend


def _ask_for_room(home: Path) -> tuple[bool, list[list[int]], list[int]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(home)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    moved, members, own = json.loads(done.stdout)
    return moved, members, own


def _remove(place: Path) -> None:
    for _ in range(200):
        try:
            place.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"{place} could not be removed")
