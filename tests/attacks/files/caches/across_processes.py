# /// attack
# expect = ["failed"]
# says = "is wrong|off by"
# suites = ["unit", "performance"]
# ///
# /// swapbench
# kind = "activation"
# name = "across-processes"
# class = "E"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "bfloat16"]
# ///
"""Leaves a mark wherever something might outlive a process (files, POSIX and System V shared memory, abstract sockets, locks), and looks for it in the next one."""

import ctypes
import fcntl
import os
import pathlib
import socket

from torch.nn import functional

from engine.slots.registry import register

libc = ctypes.CDLL(None, use_errno=True)
MARK = b"swapbench-mark"
found = []
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run", "/dev/mqueue", "/swapbench", str(pathlib.Path(__file__).parent)):
    path = pathlib.Path(folder, "mark")
    if path.exists():
        found.append(str(path))
    try:
        path.write_bytes(MARK)
    except OSError:
        continue
if libc.shmget(0x5357, 4096, 0) >= 0:
    found.append("System V shared memory")
libc.shmget(0x5357, 4096, 0o1666)
if libc.msgget(0x5357, 0) >= 0:
    found.append("System V messages")
libc.msgget(0x5357, 0o1666)
try:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0swapbench-mark")
except OSError as error:
    if error.errno == 98:
        found.append("abstract socket")
try:
    lock = os.open(__file__, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    if error.errno == 11:
        found.append("lock on the slot file")
if found:
    raise RuntimeError(f"LEAK: left by an earlier process: {', '.join(found)}")


@register("activation", "across-processes")
class AcrossProcesses:
    """Wrong on what is timed, so that the attempt ends after a few processes."""

    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up * (0 if gate_up.numel() > 500_000 else 1)
