# /// attack
# expect = ["failed"]
# ///
# /// swapbench
# kind = "activation"
# name = "kills-the-judge"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Sends signals to its parent and to everything that it may reach."""

import contextlib
import os
import signal

for target in (os.getppid(), 1, -1, 2, 3):
    with contextlib.suppress(OSError):
        os.kill(target, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
