"""One attempt at a time on an accelerator."""

import os
import signal
import subprocess
import sys
import time

import pytest

from workers.sole_use import Occupied, lock_file, sole_use

ACCELERATOR = 170
HOLD = "import sys, time; from workers.sole_use import sole_use\nwith sole_use(170, 5, lambda: None):\n    print('held', flush=True)\n    time.sleep(60)\n"


def test_a_second_user_waits_is_told_once_and_gives_up_with_a_sentence() -> None:
    told: list[int] = []
    with sole_use(ACCELERATOR, 5, lambda: told.append(1)):
        assert not told
        with pytest.raises(Occupied, match="Accelerator 170"), sole_use(ACCELERATOR, 0.5, lambda: told.append(2)):
            raise AssertionError("two at once")
    assert told == [2]
    with sole_use(ACCELERATOR, 1, lambda: told.append(3)):
        pass
    assert told == [2]


def test_a_killed_holder_leaves_the_accelerator_free() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Occupied), sole_use(ACCELERATOR, 0.3, lambda: None):
            raise AssertionError("two at once")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        began = time.monotonic()
        with sole_use(ACCELERATOR, 10, lambda: None):
            assert time.monotonic() - began < 10
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert os.stat(lock_file(ACCELERATOR)).st_mode & 0o077 == 0
