"""Holding a host where it is while another one has the clock: nothing of it runs, whatever it has prepared for that."""

import os
import socket
import time

import pytest

from tests.sandbox.conftest import Hosts
from workers.sandbox import MIB, HostProcess, Limits, processes

PATIENCE = 60
Pair = tuple[socket.socket, socket.socket]
BUSY = """
import os, threading
def work():
    while True: pass
threading.Thread(target=work, daemon=True).start()
if os.fork() == 0: work()
print("busy", flush=True)
work()
"""
# The kernel sends the signal that a descriptor's owner chose when something arrives there: SIGCONT undoes SIGSTOP.
WAKES_AT_A_MESSAGE = """
import fcntl, os, signal
fcntl.fcntl(3, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(3, 10, signal.SIGCONT)
fcntl.fcntl(3, fcntl.F_SETFL, os.O_ASYNC)
print("busy", flush=True)
while True: pass
"""
TIMER = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
timer = ctypes.c_void_p()
assert libc.timer_create(1, None, ctypes.byref(timer)) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.timerfd_create(1, 0) == -1 and ctypes.get_errno() == errno.EPERM
"""


def _until_busy(host: HostProcess) -> None:
    end = time.monotonic() + PATIENCE
    while "busy" not in host.stderr_tail():
        assert host.alive(), host.stderr_tail()
        assert time.monotonic() < end, "the host never got to work"
        time.sleep(0.01)


@pytest.fixture(params=["strongest", "weakest"])
def level(request: pytest.FixtureRequest) -> str:
    """The level with a control group where this machine has one, and the one that must do with signals."""
    return str(request.getfixturevalue(request.param))


def test_a_frozen_host_does_not_run_and_goes_on_when_thawed(hosts: Hosts, level: str) -> None:
    host = hosts.run(BUSY, level=level)
    _until_busy(host)
    host.freeze()
    held = host.cpu_seconds()
    time.sleep(0.3)
    assert host.cpu_seconds() - held < 0.001
    host.thaw()
    end = time.monotonic() + PATIENCE
    while host.cpu_seconds() < held + 0.05:
        assert time.monotonic() < end, "the host did not go on"
        time.sleep(0.01)


def test_freezing_twice_and_thawing_twice_are_harmless(hosts: Hosts, level: str) -> None:
    host = hosts.run(BUSY, level=level)
    _until_busy(host)
    for step in (host.freeze, host.freeze, host.thaw, host.thaw):
        step()
    assert host.alive()


def test_a_frozen_host_can_be_ended(hosts: Hosts, level: str) -> None:
    host = hosts.run(BUSY, level=level)
    _until_busy(host)
    members = processes.tree(host.pid)
    host.freeze()
    host.kill("had enough")
    assert host.exit_reason() == "had enough"
    assert [pid for pid in members if processes.start_time(pid) is not None] == []
    host.freeze()
    host.thaw()


def test_a_host_that_a_message_wakes_stays_frozen_in_a_group(hosts: Hosts, strongest: str, pair: Pair) -> None:
    ours, theirs = pair
    host = hosts.run(WAKES_AT_A_MESSAGE, level=strongest, end=theirs)
    if not host.grouped:
        pytest.fail("this machine's strongest level has no control group to freeze a host with")
    _until_busy(host)
    host.freeze()
    held = host.cpu_seconds()
    ours.send(b"wake up")
    time.sleep(0.3)
    assert host.cpu_seconds() - held < 0.001


def test_a_host_that_a_message_wakes_without_a_group_is_seen_by_its_time(
    hosts: Hosts, weakest: str, pair: Pair
) -> None:
    ours, theirs = pair
    host = hosts.run(WAKES_AT_A_MESSAGE, level=weakest, end=theirs)
    if host.grouped:
        pytest.fail("the weakest level is thought to have no control group")
    _until_busy(host)
    host.freeze()
    held = host.cpu_seconds()
    ours.send(b"wake up")
    time.sleep(0.5)
    assert host.cpu_seconds() - held > 0.001


def test_a_host_cannot_leave_timers_that_end_in_the_other_sides_turn(hosts: Hosts, level: str) -> None:
    host = hosts.run(TIMER, level=level)
    assert host.wait(PATIENCE) == 0, host.stderr_tail()


def test_a_host_is_bound_to_processors(hosts: Hosts, level: str) -> None:
    ours = os.sched_getaffinity(0)
    # What it was started on must not keep it from others later: the kernel intersects that with what its group may use.
    limits = Limits(memory_bytes=256 * MIB, pids=32, cpus=frozenset({min(ours)}))
    host = hosts.run(BUSY, level=level, limits=limits)
    _until_busy(host)
    for cpus in ({max(ours)}, {min(ours)}, ours):
        host.bind(cpus)
        assert {frozenset(os.sched_getaffinity(pid)) for pid in processes.tree(host.pid)} == {frozenset(cpus)}


def test_a_host_gives_way_and_comes_back(hosts: Hosts, level: str) -> None:
    host = hosts.run(BUSY, level=level)
    _until_busy(host)
    host.give_way(True)
    assert {os.sched_getscheduler(pid) for pid in processes.tree(host.pid)} == {os.SCHED_IDLE}
    host.give_way(False)
    assert {os.sched_getscheduler(pid) for pid in processes.tree(host.pid)} == {os.SCHED_OTHER}
