"""`python -m workers.lifeline PARENT ...`: an attempt that dies with the worker that started it, so that none is orphaned.

The kernel's parent-death signal (prctl(2)) survives no exec of a set-user-ID program, but an attempt is ours; its hosts have
one of their own.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that started it ends; exits at once where it has ended already."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    from workers.attempt import main

    raise SystemExit(main(sys.argv[2:]))
