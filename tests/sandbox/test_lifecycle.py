"""Starting and ending hosts: everything that a host started goes with it, whoever dies first, and the reason can be read."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.sandbox.conftest import HERE, Hosts
from workers import sandbox
from workers.sandbox import Confinement, SandboxError, bubblewrap, cgroups, processes

PATIENCE = 60
ROOT = HERE.parent.parent

DAEMON = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("daemon", flush=True)
        while True: time.sleep(0.01)
    os._exit(0)
os.wait()
"""


def test_daemon_is_gone_after_kill(hosts: Hosts) -> None:
    running = hosts.run(DAEMON + "time.sleep(600)")
    _until(lambda: "daemon" in running.stderr_tail())
    members = processes.tree(running.pid)
    assert len(members) >= 3
    running.kill()
    assert [pid for pid in members if processes.start_time(pid) is not None] == []


def test_daemon_is_gone_when_its_host_ends_by_itself(hosts: Hosts) -> None:
    running = hosts.run(DAEMON + "sys.exit(3)")
    assert running.wait(PATIENCE) == 3
    running.kill()
    assert processes.tree(running.pid) == []
    assert running.exit_reason() == "ended with exit status 3"


def test_stopped_host_can_be_ended(hosts: Hosts) -> None:
    running = hosts.run("import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGSTOP)")
    _until(lambda: "x" in running.stderr_tail())
    running.kill("took too long")
    assert running.exit_reason() == "took too long"
    assert not running.alive()


def test_ending_twice_is_harmless(hosts: Hosts) -> None:
    running = hosts.run("import time; time.sleep(600)")
    assert running.exit_reason() is None
    running.kill("the first reason")
    used = running.cpu_seconds()
    running.kill("the second reason")
    assert running.exit_reason() == "the first reason"
    assert running.cpu_seconds() == used


@pytest.mark.parametrize("level", ["strongest", "weakest"])
def test_nothing_is_left_when_the_judge_is_killed(request: pytest.FixtureRequest, level: str, tmp_path: Path) -> None:
    name = request.getfixturevalue(level)
    judge = tmp_path / "judge.py"
    judge.write_text(
        "import json, sys, time\n"
        "from tests.sandbox.conftest import Hosts\n"
        "from workers.sandbox import processes\n"
        f"running = Hosts({name!r}).run({DAEMON + 'time.sleep(600)'!r}, slot=9)\n"
        "while 'daemon' not in running.stderr_tail(): time.sleep(0.01)\n"
        "print(json.dumps(processes.tree(running.pid)), flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen([sys.executable, str(judge)], stdout=subprocess.PIPE, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        members = json.loads(process.stdout.readline())
        assert len(members) >= 3
        process.send_signal(signal.SIGKILL)
        process.wait()
    _until(lambda: not any(_runs(pid) for pid in members))


def test_groups_of_a_killed_judge_are_removed_by_the_next(strongest: str, tmp_path: Path) -> None:
    if strongest != "full":
        pytest.xfail("this machine gives the worker no control groups")
    tree = cgroups.find()
    assert isinstance(tree, cgroups.Tree)
    home = tree.homes["memory"]
    # A pid that exists, with the start time of one that is no more.
    stale = home / f"swapbench.{os.getpid()}.1.0"
    stale.mkdir()
    with subprocess.Popen(["/bin/sleep", "600"]) as left_behind:
        (stale / "cgroup.procs").write_text(str(left_behind.pid))
        cgroups.find()
        assert left_behind.wait(PATIENCE) == -signal.SIGKILL
    _until(lambda: cgroups.find() is not None and not stale.exists())


def test_groups_are_removed_with_their_hosts(hosts: Hosts, strongest: str) -> None:
    if strongest != "full":
        pytest.xfail("this machine gives the worker no control groups")
    tree = cgroups.find()
    assert isinstance(tree, cgroups.Tree)
    running = hosts.run("import time; time.sleep(600)")
    mine = f"swapbench.{os.getpid()}.*"
    assert list(tree.homes["memory"].glob(mine))
    running.kill()
    assert [path for home in {*tree.homes.values()} for path in home.glob(mine)] == []


def test_host_outlives_the_thread_that_started_it(hosts: Hosts) -> None:
    started: list[sandbox.HostProcess] = []
    thread = threading.Thread(target=lambda: started.append(hosts.run("import time; time.sleep(600)")))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert started[0].alive()


def test_signal_that_ended_the_host_is_explained(hosts: Hosts) -> None:
    program = "import ctypes; ctypes.string_at(16)"
    running = hosts.run(program)
    assert running.wait(PATIENCE) == 128 + signal.SIGSEGV
    running.kill()
    assert running.exit_reason() == (
        "ended by signal 11 (SIGSEGV): touched memory that it may not, for example wrote to a read-only input"
    )


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has a second table of system calls")
def test_call_by_the_32_bit_door_ends_the_host(hosts: Hosts) -> None:
    # mov eax, 20 (getpid); int 0x80; ret
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""
    running = hosts.run(program)
    assert running.wait(PATIENCE) == 128 + signal.SIGSYS
    running.kill()
    assert running.exit_reason() == "ended by signal 31 (SIGSYS): a refused system call"


def test_command_line_of_the_sandbox_tells_nothing(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "hidden-folder").mkdir()
    running = hosts.run(
        "import time; time.sleep(600)",
        env={"HIDDEN": "hidden-value"},
        readonly={str(tmp_path / "hidden-folder"): "/hidden"},
    )
    outside = [running.pid, processes.parent(running.pid)]
    for pid in outside:
        for file in ("cmdline", "environ"):
            assert b"hidden" not in Path(f"/proc/{pid}/{file}").read_bytes()


def test_hosts_of_two_slots_have_two_uids(hosts: Hosts) -> None:
    if hosts.level == "user":
        pytest.xfail("without root every host has the worker's uid")
    first = hosts.run("import time; time.sleep(600)", slot=1)
    second = hosts.run("import time; time.sleep(600)", slot=2)
    assert [os.stat(f"/proc/{running.pid}").st_uid for running in (first, second)] == [61001, 61002]


def test_socket_arrives_at_its_number_and_nothing_else_does(hosts: Hosts, pair: tuple) -> None:  # type: ignore[type-arg]
    ours, theirs = pair
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        hosts.run(
            "import os, socket\n"
            "s = socket.socket(fileno=3)\n"
            "s.send(repr(sorted(os.listdir('/proc/self/fd'))).encode())\n",
            end=theirs,
        )
        # The fifth is the listing's own.
        assert ours.recv(1000).decode() == "['0', '1', '2', '3', '4']"
    finally:
        os.close(leak)


def test_program_that_does_not_exist_is_named(strongest: str) -> None:
    view = sandbox.interpreter_view()
    confinement = Confinement(argv=("/usr/bin/absent-program",), readonly=view.readonly, symlinks=view.symlinks)
    with sandbox.spawn(confinement, strongest) as running:
        assert running.wait(PATIENCE) == 1
        running.kill()
        assert "absent-program" in running.stderr_tail()


def test_bind_that_does_not_exist_is_the_sandbox_s_error(strongest: str) -> None:
    with pytest.raises(SandboxError, match="should see /absent/folder, which does not exist"):
        sandbox.spawn(Confinement(argv=("/usr/bin/true",), readonly={"/absent/folder": "/x"}), strongest)


def test_bind_that_the_host_s_uid_may_not_read_is_named(strongest: str, tmp_path: Path) -> None:
    if strongest == "user":
        pytest.xfail("without root the host reads what the worker reads")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(SandboxError, match=f"uid 61000 may not read it; make it readable for others .{closed}"):
        sandbox.spawn(Confinement(argv=("/usr/bin/true",), readonly={str(closed): "/x"}), strongest)


def test_missing_bubblewrap_is_said_with_the_command_that_mends_it(
    strongest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "find", lambda: None)
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        sandbox.spawn(Confinement(argv=("/usr/bin/true",)), strongest)


def test_failed_start_leaves_nothing(strongest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "find", lambda: "/absent/bwrap")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxError, match="could not be set up"):
        sandbox.spawn(Confinement(argv=("/usr/bin/true",)), strongest)
    assert sorted(os.listdir("/proc/self/fd")) == before
    tree = cgroups.find()
    if isinstance(tree, cgroups.Tree):
        assert list(tree.homes["memory"].glob(f"swapbench.{os.getpid()}.*")) == []


def test_many_hosts_leak_no_descriptor_and_no_thread(hosts: Hosts) -> None:
    hosts.run("pass").kill()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(5):
        hosts.run("pass").kill()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)


def test_none_is_refused_unless_it_is_asked_for_by_hand() -> None:
    confinement = Confinement(argv=(sys.executable, "-c", "pass"))
    with pytest.raises(SandboxError, match="refused to start contributor code without a sandbox"):
        sandbox.spawn(confinement, "none")
    with pytest.raises(SandboxError, match="no isolation level 'strong'"):
        sandbox.spawn(confinement, "strong")


def test_unconfined_host_finds_its_paths_and_its_socket(pair: tuple, tmp_path: Path) -> None:  # type: ignore[type-arg]
    ours, theirs = pair
    (tmp_path / "slot.txt").write_text("contents")
    program = (
        "import os, socket\n"
        "s = socket.socket(fileno=5)\n"
        "s.send(open(os.environ['SLOT']).read().encode() + str(os.path.isdir(os.environ['CACHE'])).encode())\n"
    )
    confinement = Confinement(
        argv=(sys.executable, "-c", program),
        env={"SLOT": "/slot/slot.txt", "CACHE": "/cache", "PATH": "/usr/bin:/slot"},
        readonly={str(tmp_path): "/slot"},
        scratch={"/cache": 1 << 20},
        socket=theirs.fileno(),
        socket_number=5,
    )
    with sandbox.spawn(confinement, "none", unconfined=True) as running:
        assert ours.recv(100) == b"contentsTrue"
        assert running.path("/slot/slot.txt") == str(tmp_path / "slot.txt")
        assert running.wait(PATIENCE) == 0


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _until(condition: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "what was waited for never came"
        time.sleep(0.005)
