"""The system calls that a module host may not make, assembled into a classic BPF program for `bwrap --seccomp`.

The list is a deny-list: PyTorch, CUDA and compilers need too many calls for an allow-list to stay true over their
versions. What makes up for that is that it is one layer of several (namespaces, no capabilities, an unprivileged uid),
and that calls newer than this file do not exist for a host. Refusals are EPERM; calls for which libraries have a fall-
back that we prefer (clone3, io_uring) are ENOSYS.

Sources: `man 2 seccomp`, Documentation/userspace-api/seccomp_filter.rst, and the kernel's syscall tables
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

import errno
import platform
import struct
from collections.abc import Iterable, Mapping

# Offsets into `struct seccomp_data`; both architectures are little-endian, so the low half of argument n lies at 16 +
# 8n.
_OFFSET_NR = 0
_OFFSET_ARCH = 4
_OFFSET_ARGS = 16

_LD_W_ABS = 0x20
_JMP_JEQ_K = 0x15
_JMP_JGE_K = 0x35
_JMP_JSET_K = 0x45
_ALU_AND_K = 0x54
_RET_K = 0x06

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_X32_BIT = 0x40000000

# CLONE_NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | NEWNS
_NAMESPACE_FLAGS = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_NOTIFY = 1026
_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_PERSONALITY_QUERY = 0xFFFFFFFF

# The first number that this file does not know. From 424 on the numbers are the same on every architecture.
_FIRST_UNKNOWN = 467

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: (x86_64, aarch64); None where the architecture has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "fcntl": (72, 25),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    # A watch on a bound file tells when others on the machine read it.
    "inotify_add_watch": (254, 27),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "listmount": (458, 458),
    "lookup_dcookie": (212, 18),
    "lsm_get_self_attr": (459, 459),
    "lsm_list_modules": (461, 461),
    "lsm_set_self_attr": (460, 460),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "sched_setaffinity": (203, 122),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "statmount": (457, 457),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    # Its timers end in interrupts on whatever runs then, and may wake a process that is stopped.
    "timer_create": (222, 107),
    "timerfd_create": (283, 85),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "vserver": (236, None),
}

# Judged by their arguments below, so not refused as such.
_BY_ARGUMENT = frozenset({"clone", "fcntl", "ioctl", "mknod", "mknodat", "personality", "socket", "socketpair"})
# Memory that no rlimit counts (it belongs to a file, not to a process): refused only where no memory cgroup counts it.
MEMORY_FILES = frozenset({"memfd_create", "shmget"})
_ENOSYS = frozenset({"clone3", "io_uring_enter", "io_uring_register", "io_uring_setup"})
_EPERM = frozenset(_NUMBERS) - _BY_ARGUMENT - MEMORY_FILES - _ENOSYS


class UnsupportedArchitecture(Exception):
    """This processor has no filter here, so no host can be confined on it."""

    def __init__(self, machine: str) -> None:
        self.machine = machine
        super().__init__(
            f"the sandbox has no system-call filter for the processor architecture {machine!r}; "
            f"it has one for {' and '.join(sorted(_ARCHITECTURES))}"
        )


def numbers(machine: str) -> Mapping[str, int]:
    """System-call numbers of the named calls on `machine` (as `platform.machine()` says it)."""
    if machine not in _ARCHITECTURES:
        raise UnsupportedArchitecture(machine)
    column = list(_ARCHITECTURES).index(machine)
    return {name: number for name, row in _NUMBERS.items() if (number := row[column]) is not None}


def program(machine: str | None = None, *, deny: Iterable[str] = (), loopback: bool = False) -> bytes:
    """The filter as an array of `struct sock_filter`, for `machine` (default: this one), refusing also the calls
    named in `deny`. With `loopback` it lets internet sockets be made, which reach what the network namespace has.
    """
    machine = machine or platform.machine()
    number = numbers(machine)
    extra = frozenset(deny)
    code = [
        _load(_OFFSET_ARCH),
        *_unless_equal(_ARCHITECTURES[machine], _KILL_PROCESS),
        _load(_OFFSET_NR),
    ]
    if machine == "x86_64":
        code += _if_at_least(_X32_BIT, _refuse(errno.ENOSYS))
    code += _if_at_least(_FIRST_UNKNOWN, _refuse(errno.ENOSYS))
    for name in sorted(_ENOSYS):
        code += _if_equal(number[name], _refuse(errno.ENOSYS))
    for name in sorted((_EPERM | extra) & number.keys()):
        code += _if_equal(number[name], _refuse(errno.EPERM))
    eperm = _refuse(errno.EPERM)
    code += _when(number["clone"], [_argument(0), *_if_any_bit(_NAMESPACE_FLAGS, eperm)])
    internet = [line for family in (_AF_INET, _AF_INET6) for line in _if_equal(family, _ALLOW)] if loopback else []
    for name in ("socket", "socketpair"):
        code += _when(number[name], [_argument(0), *internet, *_unless_equal(_AF_UNIX, eperm)])
    code += _when(number["personality"], [_argument(0), *_unless_equal(_PERSONALITY_QUERY, eperm)])
    code += _when(number["ioctl"], [_argument(1), *_if_equal(_TIOCSTI, eperm), *_if_equal(_TIOCLINUX, eperm)])
    code += _when(number["fcntl"], [_argument(1), *_if_equal(_F_NOTIFY, eperm)])
    for name, argument in (("mknod", 1), ("mknodat", 2)):
        if name in number:
            kinds = [*_if_equal(_S_IFCHR, eperm), *_if_equal(_S_IFBLK, eperm)]
            code += _when(number[name], [_argument(argument), _instruction(_ALU_AND_K, _S_IFMT), *kinds])
    code.append(_return(_ALLOW))
    return b"".join(code)


def _instruction(code: int, k: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jump_true, jump_false, k)


def _load(offset: int) -> bytes:
    return _instruction(_LD_W_ABS, offset)


def _argument(index: int) -> bytes:
    # Every argument judged here is an int or smaller in the kernel, which ignores the upper half just as this does.
    return _load(_OFFSET_ARGS + 8 * index)


def _return(action: int) -> bytes:
    return _instruction(_RET_K, action)


def _refuse(error: int) -> int:
    return _ERRNO | error


def _if_equal(value: int, action: int) -> list[bytes]:
    return [_instruction(_JMP_JEQ_K, value, 0, 1), _return(action)]


def _unless_equal(value: int, action: int) -> list[bytes]:
    return [_instruction(_JMP_JEQ_K, value, 1, 0), _return(action)]


def _if_at_least(value: int, action: int) -> list[bytes]:
    return [_instruction(_JMP_JGE_K, value, 0, 1), _return(action)]


def _if_any_bit(mask: int, action: int) -> list[bytes]:
    return [_instruction(_JMP_JSET_K, mask, 0, 1), _return(action)]


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """Run `body` for the call `number` and allow it if nothing in `body` refused; the accumulator holds the number
    before and after.
    """
    body = [*body, _return(_ALLOW)]
    return [_instruction(_JMP_JEQ_K, number, 0, len(body)), *body]
