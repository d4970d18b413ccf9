"""Collecting files from a host takes regular files and nothing else, whatever the host puts there."""

import os
from pathlib import Path

import pytest

from tests.sandbox.conftest import Hosts
from workers import sandbox
from workers.sandbox import MIB, Collected, HostProcess

TRAPS = """
import os, socket, time
os.chdir("/cache")
os.makedirs("kernels/deep")
for name, text in (("kernels/a.cubin", "aaaa"), ("kernels/deep/b.so", "bbb")):
    with open(name, "w") as handle:
        handle.write(text)
os.chmod("kernels/a.cubin", 0o777)
os.symlink("/etc/passwd", "passwords")
os.symlink("/etc", "etc")
os.symlink("../../../../../../etc", "kernels/up")
os.symlink("self", "self")
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
for name in (b"new\\nline", b"not-utf8-\\xff", b"\\x1b[2J"):
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
os.makedirs("/".join(["d"] * 40))
print("ready", flush=True)
time.sleep(600)
"""


def test_regular_files_are_copied_and_traps_are_refused(hosts: Hosts, tmp_path: Path) -> None:
    found = _collect(hosts.run(TRAPS, scratch={"/cache": 4 * MIB}), tmp_path)
    assert sorted(found.files) == ["kernels/a.cubin", "kernels/deep/b.so"]
    assert found.bytes == 7
    assert (tmp_path / "kernels/a.cubin").read_text() == "aaaa"
    assert (tmp_path / "kernels/a.cubin").stat().st_mode & 0o133 == 0
    reasons = {refusal.path: refusal.why for refusal in found.refused}
    deep = next(path for path in reasons if path.startswith("d/d"))
    assert reasons.pop(deep) == "too deep"
    assert reasons == {
        "passwords": "it is a symbolic link",
        "etc": "it is a symbolic link",
        "kernels/up": "it is a symbolic link",
        "self": "it is a symbolic link",
        "fifo": "it is a FIFO",
        "socket": "it is a socket",
        "new\nline": "its name is not plain text",
        "not-utf8-\\udcff": "its name is not plain text",
        "\x1b[2J": "its name is not plain text",
    }
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_files_and_bytes_are_bounded(hosts: Hosts, tmp_path: Path) -> None:
    program = """
import os, time
for n in range(12):
    with open(f"/cache/{n}", "wb") as handle:
        handle.write(bytes(100))
with open("/cache/big", "wb") as handle:
    handle.truncate(1 << 20)
print("ready", flush=True)
time.sleep(600)
"""
    host = hosts.run(program, scratch={"/cache": 4 * MIB})
    few = _collect(host, tmp_path / "few", max_files=5, max_bytes=2 * MIB)
    assert len(few.files) == 5
    assert {refusal.why for refusal in few.refused} == {"more than 5 files"}
    small = _collect(host, tmp_path / "small", max_bytes=2000)
    assert (len(small.files), small.bytes) == (12, 1200)
    assert [(refusal.path, refusal.why) for refusal in small.refused] == [("big", "more than 2000 bytes in all")]
    assert not (tmp_path / "small" / "big").exists()


def test_endless_folder_ends_the_collection(hosts: Hosts, tmp_path: Path) -> None:
    program = """
import os, time
for n in range(2000):
    os.mkdir(f"/cache/{n}")
print("ready", flush=True)
time.sleep(600)
"""
    found = _collect(hosts.run(program, scratch={"/cache": 4 * MIB}), tmp_path, max_files=100)
    assert found.files == []
    assert found.refused[-1].why == "the folder and what follows: too many entries"
    assert len(list(tmp_path.iterdir())) <= 400


def test_folder_that_turns_into_a_link_while_it_is_read_leads_nowhere(hosts: Hosts, tmp_path: Path) -> None:
    program = """
import os
os.mkdir("/cache/real")
for n in range(20):
    with open(f"/cache/real/{n}", "w") as handle: handle.write("honest")
os.symlink("/etc", "/cache/link")
print("ready", flush=True)
while True:
    os.rename("/cache/real", "/cache/away"); os.rename("/cache/link", "/cache/real")
    os.rename("/cache/real", "/cache/link"); os.rename("/cache/away", "/cache/real")
"""
    host = hosts.run(program, scratch={"/cache": 4 * MIB})
    for n in range(30):
        _collect(host, tmp_path / str(n))
    taken = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.read_text() for path in taken} <= {"honest"}
    assert {path.name for path in taken} <= {str(n) for n in range(20)}


def test_only_scratch_folders_can_be_collected(hosts: Hosts, tmp_path: Path) -> None:
    host = hosts.run("import time; time.sleep(600)", scratch={"/cache": 4 * MIB})
    for inside in ("/", "/usr", "/cache/..", "/cache/x"):
        with pytest.raises(ValueError, match="no scratch folder"):
            sandbox.collect(host, inside, tmp_path, max_bytes=1, max_files=1)


def test_host_that_has_ended_has_nothing_to_collect(hosts: Hosts, tmp_path: Path) -> None:
    host = hosts.run("pass", scratch={"/cache": 4 * MIB})
    host.kill()
    with pytest.raises(FileNotFoundError):
        sandbox.collect(host, "/cache", tmp_path, max_bytes=1, max_files=1)


def _collect(host: HostProcess, into: Path, *, max_bytes: int = MIB, max_files: int = 100) -> Collected:
    while "ready" not in host.stderr_tail():
        assert host.alive(), host.stderr_tail()
        os.sched_yield()
    into.mkdir(exist_ok=True)
    return sandbox.collect(host, "/cache", into, max_bytes=max_bytes, max_files=max_files)
