"""The system-call filter, run by a small interpreter of its own instruction set, so that both architectures are tested on either."""

import errno
import struct

import pytest

from workers.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = sorted(ARCH)


def decide(
    machine: str, call: int | str, *arguments: int, arch: int | None = None, deny: frozenset[str] = frozenset()
) -> int:
    """What the kernel would do with the call: the filter's return value."""
    program = list(struct.iter_unpack("<HBBI", seccomp.program(machine, deny=deny)))
    number = seccomp.numbers(machine)[call] if isinstance(call, str) else call
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("<iIQ6Q", number, ARCH[machine] if arch is None else arch, 0, *padded)
    accumulator = position = 0
    while True:
        code, jump_true, jump_false, k = program[position]
        position += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x15:
                position += jump_true if accumulator == k else jump_false
            case 0x35:
                position += jump_true if accumulator >= k else jump_false
            case 0x45:
                position += jump_true if accumulator & k else jump_false
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"instruction {code:#x} is none that the filter should need")


def refusal(error: int) -> int:
    return 0x00050000 | error


EPERM, ENOSYS = refusal(errno.EPERM), refusal(errno.ENOSYS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "call",
    [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "ptrace",
        "process_vm_readv",
        "bpf",
        "keyctl",
        "userfaultfd",
        "perf_event_open",
    ],
)
def test_calls_of_the_list_are_refused(machine: str, call: str) -> None:
    assert decide(machine, call) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"])
def test_calls_with_a_fall_back_do_not_exist(machine: str, call: str) -> None:
    assert decide(machine, call) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_and_forks_are_allowed_and_namespaces_are_not(machine: str) -> None:
    thread = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x80000
    assert decide(machine, "clone", thread) == ALLOW
    assert decide(machine, "clone", 17) == ALLOW
    for namespace in (0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00020000):
        assert decide(machine, "clone", 17 | namespace) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_only_unix_sockets_are_allowed(machine: str, call: str) -> None:
    assert decide(machine, call, 1, 1, 0) == ALLOW
    for family in (0, *range(2, 64), (1 << 32) | 2):
        assert decide(machine, call, family, 1, 0) == EPERM
    # The kernel takes the family as an int and never sees the upper half.
    assert decide(machine, call, (1 << 32) | 1) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_device_nodes_are_refused_and_other_nodes_are_not(machine: str) -> None:
    for kind, outcome in (
        (0o020000, EPERM),
        (0o060000, EPERM),
        (0o010000, ALLOW),
        (0o100000, ALLOW),
        (0o140000, ALLOW),
    ):
        assert decide(machine, "mknodat", 0, 0, kind | 0o666, 0) == outcome


@pytest.mark.parametrize("machine", MACHINES)
def test_personality_may_be_asked_but_not_changed(machine: str) -> None:
    assert decide(machine, "personality", 0xFFFFFFFF) == ALLOW
    assert decide(machine, "personality", 0x0040000) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_terminals_can_not_be_typed_into(machine: str) -> None:
    assert decide(machine, "ioctl", 0, 0x5412) == EPERM
    assert decide(machine, "ioctl", 0, (1 << 32) | 0x5412) == EPERM
    assert decide(machine, "ioctl", 0, 0x5413) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_folders_can_not_be_watched(machine: str) -> None:
    assert decide(machine, "fcntl", 5, 1026) == EPERM
    assert decide(machine, "fcntl", 5, 1030) == ALLOW
    assert decide(machine, "inotify_init1") == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_ordinary_calls_are_allowed(machine: str) -> None:
    read, write, exit_group, futex = {"x86_64": (0, 1, 231, 202), "aarch64": (63, 64, 94, 98)}[machine]
    for number in (read, write, exit_group, futex):
        assert decide(machine, number) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_newer_than_the_list_do_not_exist(machine: str) -> None:
    assert {decide(machine, number) for number in range(467, 600)} == {ENOSYS}


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_s_calls_end_the_process(machine: str) -> None:
    assert decide(machine, 1, arch=0x40000003) == KILL
    assert decide(machine, 1, arch=ARCH["aarch64" if machine == "x86_64" else "x86_64"]) == KILL


def test_x32_calls_do_not_exist() -> None:
    assert decide("x86_64", 0x40000000 | 41, 2) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_memory_files_are_refused_on_request(machine: str) -> None:
    for call in seccomp.MEMORY_FILES:
        assert decide(machine, call) == ALLOW
        assert decide(machine, call, deny=seccomp.MEMORY_FILES) == EPERM


def test_unknown_processor_is_named() -> None:
    with pytest.raises(seccomp.UnsupportedArchitecture, match="'riscv64'; it has one for aarch64 and x86_64"):
        seccomp.program("riscv64")
