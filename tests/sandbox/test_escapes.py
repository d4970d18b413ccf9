"""Hostile code inside a real host tries to get out; each attempt must be refused, and for the reason that we think.

tests/sandbox/inside.py makes the attempts, all in one host for each level, and reports them one by one.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.conftest import HERE, Hosts
from tests.sandbox.inside import PROBES
from workers import sandbox
from workers.sandbox import kernel

LEVELS = ["strongest", "weakest", "given"]
SECRET = "9f2c-worker-secret-77aa"

# The refusal that each attempt must meet; EPERM, the system-call filter's, where nothing is said.
GONE = {"ENOENT"}
READ_ONLY = {"EROFS"}
EXPECTED: dict[str, set[str]] = {
    "socket_by_x32_number": {"ENOSYS"},
    "dns_lookup": {"ENETUNREACH"},
    "abstract_socket_of_the_worker": {"ECONNREFUSED"},
    "filesystem_socket_of_the_worker": GONE,
    "network_interfaces": {"ENODEV"},
    "signal_to_the_worker": {"ESRCH"},
    "pidfd_of_the_worker": {"ESRCH"},
    "processes_of_others": {"ESRCH"},
    "environ_of_process_1": {"EACCES"},
    "memory_of_process_1": {"EACCES"},
    "memory_of_process_1_by_thread": {"EACCES"},
    "root_of_process_1": {"EACCES"},
    "command_line_of_process_1": {"EACCES"},
    "descriptors_of_others": {"EACCES"},
    "descriptors_beyond_its_own": {"EBADF"},
    "environment_of_the_worker": GONE,
    "memory_of_the_machine": {"EACCES"},
    "kernel_log_by_proc": {"EACCES", "EPERM"},
    "kernel_log_by_device": GONE,
    "clone3_new_user_namespace": {"ENOSYS"},
    "write_of_the_uid_map": {"EPERM", "EACCES"},
    "control_groups": GONE,
    "io_uring": {"ENOSYS"},
    "a_call_newer_than_the_filter": {"ENOSYS"},
    "better_priority": {"EACCES", "EPERM"},
    "other_groups": {"EPERM"},
    "devices_beyond_the_plain_ones": GONE,
    "terminals": GONE,
    "shared_memory_of_the_machine": GONE,
    "file_in_dev": READ_ONLY,
    "file_in_root": READ_ONLY,
    "file_in_etc": READ_ONLY,
    "file_in_proc_1": {"EACCES", "EROFS"},
    "sys": GONE,
    "sys_power": GONE,
    "sysctl_core_pattern": {"EROFS", "EACCES", "EPERM"},
    "sysctl_hostname": {"EROFS", "EACCES", "EPERM"},
    "sysctl_drop_caches": {"EROFS", "EACCES", "EPERM"},
    "sysctl_user_namespaces": {"EROFS", "EACCES", "EPERM"},
    "sysrq": {"EROFS", "EACCES", "EPERM", "ENOENT"},
    # No such uid and gid: the namespace maps one of each.
    "uid_0": {"EINVAL"},
    "gid_0": {"EINVAL"},
    "passwords": GONE,
    "users": GONE,
    "file_of_the_worker": GONE,
    "homes": GONE,
    "write_to_a_bind": READ_ONLY,
    "change_of_a_bind": READ_ONLY,
    "hard_link_out_of_a_bind": {"EXDEV", "EPERM"},
    "socketpair_tipc": {"EPERM"},
}


class Reports:
    """What one hostile host reported, and the state of things after it."""

    def __init__(self, level: str, folder: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(30)
        hosts = Hosts(level)
        secret_file = folder / "secret.txt"
        secret_file.write_text(SECRET)
        abstract = f"swapbench-test-{os.getpid()}-{folder.name}"
        with ours, theirs, socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as named:
            listening.bind("\0" + abstract)
            listening.listen()
            named.bind(str(folder / "worker.sock"))
            named.listen()
            binds = [*sandbox.interpreter_view().readonly.values(), "/probe"]
            settings = {
                "worker": str(os.getpid()),
                "abstract": abstract,
                "socket": str(folder / "worker.sock"),
                "file": str(secret_file),
                # Reversed, so that these settings are not themselves where the host finds it.
                "secret": SECRET[::-1],
                "binds": ":".join(binds),
            }
            self.found: dict[str, dict[str, Any]] = {}
            try:
                host = hosts.run("inside.py", end=theirs, level=level)
                theirs.close()
                counted = {"memory_counted": "yes" if host.grouped else "no"}
                ours.send(json.dumps(settings | counted).encode())
                while (message := self._next(ours, host))["name"] != "end":
                    self.found[message["name"]] = message
                self.alive_after = host.alive()
                ours.send(b"x")
                self.status = host.wait(10)
                self.reason = host.exit_reason()
            finally:
                hosts.end_all()

    @staticmethod
    def _next(ours: socket.socket, host: sandbox.HostProcess) -> dict[str, Any]:
        block = ours.recv(1 << 17)
        assert block, f"the host ended early: {host.exit_reason()}; it said: {host.stderr_tail()}"
        message: dict[str, Any] = json.loads(block)
        return message


@pytest.fixture(scope="module")
def reports(strongest: str, weakest: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reports]]:
    """Hostile hosts' reports: at the strongest and the weakest level, and where the kernel leaves making the user
    namespace to root.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWAPBENCH_TEST_SECRET", SECRET)
        found = {
            name: Reports(level, tmp_path_factory.mktemp(name))
            for name, level in (("strongest", strongest), ("weakest", weakest))
        }
        patch.setattr(kernel, "refuses_the_unprivileged", lambda: True)
        yield found | {"given": Reports(strongest, tmp_path_factory.mktemp("given"))}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(PROBES))
def test_attempt_is_refused(reports: dict[str, Reports], name: str, level: str) -> None:
    message = reports[level].found[name]
    assert "through" not in message, f"{name} got through: {message['through']}"
    assert message["errno"] in EXPECTED.get(name, {"EPERM"}), message


@pytest.mark.parametrize("level", LEVELS)
def test_host_and_worker_are_well_after_every_attempt(reports: dict[str, Reports], level: str) -> None:
    report = reports[level]
    assert set(PROBES) <= report.found.keys()
    assert report.alive_after
    assert (report.status, report.reason) == (0, "ended by itself")
    assert not (HERE / "swapbench-escape").exists()


@pytest.mark.parametrize("level", LEVELS)
def test_what_honest_modules_need_works(reports: dict[str, Reports], level: str) -> None:
    works = reports[level].found["works"]["works"]
    assert {name: said for name, said in works.items() if said != "yes"} == {}


def test_every_expectation_names_an_attempt_and_a_known_error() -> None:
    assert EXPECTED.keys() <= PROBES.keys() | {"socket_by_x32_number", "iopl", "ioperm", "modify_ldt"}
    assert set().union(*EXPECTED.values()) <= set(errno.errorcode.values())
