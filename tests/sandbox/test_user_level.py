"""The level of a laptop without root: the other tests of this room once more, as a user without privileges.

Where they run as such a user anyway, this file has nothing to add.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import HERE

ROOT = HERE.parent.parent
NOBODY = 61179

# In a mount namespace of its own: folders that only root can enter are replaced by empty ones with what Python needs.
SCRIPT = """
set -e
n=0
for path in $NEEDED; do n=$((n + 1)); mkdir "$STAGE/$n"; mount --rbind "$path" "$STAGE/$n"; done
mount -t tmpfs -o mode=0755 tmpfs /root
n=0
for path in $NEEDED; do n=$((n + 1)); case "$path" in /root/*) mkdir -p "$path"; mount --rbind "$STAGE/$n" "$path";; esac; done
exec setpriv --reuid "$NOBODY" --regid "$NOBODY" --clear-groups "$PYTHON" -m pytest -q -W error -c /dev/null \
    -p no:cacheprovider -p no:django --rootdir . \
    --basetemp "$STAGE/tests" tests/sandbox/test_escapes.py tests/sandbox/test_limits.py tests/sandbox/test_lifecycle.py \
    tests/sandbox/test_collect.py
"""


@pytest.fixture
def stage() -> Iterator[Path]:
    """A folder of that user; not below tmp_path, whose parents pytest closes to everybody else."""
    folder = Path(tempfile.mkdtemp(prefix="swapbench-stage-"))
    yield folder
    shutil.rmtree(folder)


def test_every_test_of_this_room_holds_without_root(stage: Path) -> None:
    if os.geteuid() != 0:
        return
    os.chown(stage, NOBODY, NOBODY)
    base = Path(sys.executable).resolve().parent.parent
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "NEEDED": " ".join(map(str, dict.fromkeys([base, Path(sys.prefix), ROOT]))),
        "STAGE": str(stage),
        "PYTHON": sys.executable,
        "NOBODY": str(NOBODY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(stage),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", SCRIPT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 0
    assert " passed" in done.stdout
