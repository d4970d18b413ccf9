"""Runs inside a confined host: tries every escape in `PROBES` and reports each over the socket as one JSON message.

A probe that raises OSError was refused, and its errno is reported; a probe that returns a text got through, and the text says to what.
Standard library only, and no import of the project: this stands for hostile code.
"""

import contextlib
import ctypes
import errno
import glob
import json
import os
import platform
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
PROBES: dict[str, Callable[[], str]] = {}
SETTINGS: dict[str, str] = {}

# (x86_64, aarch64)
NUMBERS = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "inotify_init1": (294, 26),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
ONLY_X86 = {"iopl": 172, "ioperm": 173, "modify_ldt": 154}


def read(path: str) -> str:
    with open(path) as handle:
        return handle.read()


def raw(number: int, *arguments: int | bytes | None) -> int:
    """The system call itself, past every wrapper; raises OSError."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def call(name: str, *arguments: int | bytes | None) -> int:
    return raw(NUMBERS[name][0 if X86 else 1] if name in NUMBERS else ONLY_X86[name], *arguments)


def probe(function: Callable[[], str]) -> Callable[[], str]:
    PROBES[function.__name__] = function
    return function


def simple(label: str, name: str, *arguments: int | bytes | None) -> None:
    """A probe that is one system call, which must be refused."""
    PROBES[label] = lambda: f"{name} returned {call(name, *arguments)}"


def opening(label: str, path: str, flags: int = os.O_RDONLY) -> None:
    """A probe that opens a path."""

    def attempt() -> str:
        descriptor = os.open(path, flags)
        try:
            return (
                f"opened {path}: {os.read(descriptor, 64)!r}" if flags == os.O_RDONLY else f"opened {path} for writing"
            )
        finally:
            os.close(descriptor)

    PROBES[label] = attempt


# --- network -----------------------------------------------------------------------------------------------------------------

FAMILIES = {
    "inet": 2,
    "ax25": 3,
    "ipx": 4,
    "appletalk": 5,
    "inet6": 10,
    "netlink": 16,
    "packet": 17,
    "rds": 21,
    "can": 29,
    "tipc": 30,
    "bluetooth": 31,
    "alg": 38,
    "nfc": 39,
    "vsock": 40,
    "kcm": 41,
    "qipcrtr": 42,
    "smc": 43,
    "xdp": 44,
}
for _family, _number in FAMILIES.items():
    for _kind, _type in (("stream", 1), ("dgram", 2), ("raw", 3)):
        PROBES[f"socket_{_family}_{_kind}"] = lambda n=_number, t=_type: f"socket {raw(41 if X86 else 198, n, t, 0)}"
PROBES["socketpair_tipc"] = lambda: f"{raw(53 if X86 else 199, 30, 1, 0, ctypes.create_string_buffer(8).raw)}"
if X86:
    PROBES["socket_by_x32_number"] = lambda: f"socket {raw(0x40000000 | 41, 2, 1, 0)}"
PROBES["socket_high_bits_in_family"] = lambda: f"socket {raw(41 if X86 else 198, (1 << 32) | 2, 1, 0)}"


@probe
def dns_lookup() -> str:
    try:
        return f"resolved: {socket.getaddrinfo('example.org', 80)}"
    except socket.gaierror as error:
        raise OSError(errno.ENETUNREACH, str(error)) from None


@probe
def abstract_socket_of_the_worker() -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + SETTINGS["abstract"])
        return "connected"


@probe
def filesystem_socket_of_the_worker() -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(SETTINGS["socket"])
        return "connected"


@probe
def network_interfaces() -> str:
    names = [line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]]
    if set(names) <= {"lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"}:
        raise OSError(errno.ENODEV, "nothing but the namespace's own")
    return f"sees {names}"


# --- other processes ---------------------------------------------------------------------------------------------------------


@probe
def signal_to_the_worker() -> str:
    os.kill(int(SETTINGS["worker"]), 0)
    return "sent"


@probe
def pidfd_of_the_worker() -> str:
    return f"opened {call('pidfd_open', int(SETTINGS['worker']), 0)}"


@probe
def processes_of_others() -> str:
    seen = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    if set(seen) <= {1, os.getpid()}:
        raise OSError(errno.ESRCH, "only the namespace's own")
    return f"sees {seen}"


@probe
def kill_of_the_reaper() -> str:
    os.kill(1, signal.SIGKILL)
    os.kill(1, 0)  # raises ESRCH if it is gone, and then neither would this run
    raise OSError(errno.EPERM, "it lives on")


simple("ptrace_attach", "ptrace", 16, 1, 0, 0)
simple("ptrace_seize", "ptrace", 0x4206, 1, 0, 0)
simple("ptrace_traceme", "ptrace", 0, 0, 0, 0)
simple("process_vm_readv", "process_vm_readv", 1, 0, 0, 0, 0, 0)
simple("process_vm_writev", "process_vm_writev", 1, 0, 0, 0, 0, 0)
simple("process_madvise", "process_madvise", 0, 0, 0, 0, 0)
simple("pidfd_getfd", "pidfd_getfd", 0, 0, 0)
simple("kcmp", "kcmp", 1, 1, 0, 0, 0)
opening("environ_of_process_1", "/proc/1/environ")
opening("memory_of_process_1", "/proc/1/mem", os.O_RDWR)
opening("memory_of_process_1_by_thread", "/proc/1/task/1/mem", os.O_RDWR)
opening("root_of_process_1", "/proc/1/root/etc/passwd")
opening("command_line_of_process_1", "/proc/1/cmdline")


@probe
def descriptors_of_others() -> str:
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        with contextlib.suppress(OSError):
            found += [f"{pid}:{os.readlink(f'/proc/{pid}/fd/{fd}')}" for fd in os.listdir(f"/proc/{pid}/fd")]
    if not found:
        raise OSError(errno.EACCES, "none to be seen")
    return f"sees {found}"


@probe
def descriptors_beyond_its_own() -> str:
    links = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    allowed = {0: "/dev/null", 1: "pipe:", 2: "pipe:", 3: "socket:"}
    odd = {number: target for number, target in links.items() if not target.startswith(allowed.get(number, "/proc/"))}
    if not odd:
        raise OSError(errno.EBADF, "only 0, 1, 2 and the socket")
    return f"holds {odd}"


@probe
def environment_of_the_worker() -> str:
    texts = [repr(os.environ)]
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            texts.append(read(path))
    if any(SETTINGS["secret"][::-1] in text for text in texts):
        return "found the worker's secret"
    if set(os.environ) - {"PATH", "LC_CTYPE", "PWD"}:
        return f"sees {sorted(os.environ)}"
    raise OSError(errno.ENOENT, "not there")


@probe
def memory_of_the_machine() -> str:
    for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/proc/vmcore"):
        with contextlib.suppress(OSError), open(path, "rb") as handle:
            handle.read(16)
            return f"read {path}"
    raise OSError(errno.EACCES, "none")


opening("kernel_log_by_proc", "/proc/kmsg")
opening("kernel_log_by_device", "/dev/kmsg")


@probe
def kernel_addresses() -> str:
    with open("/proc/kallsyms") as handle:
        addresses = {handle.readline().split()[0] for _ in range(100)}
    if {int(address, 16) for address in addresses} == {0}:
        raise OSError(errno.EPERM, "all zero")
    return f"sees {sorted(addresses)[:3]}"


# --- namespaces and mounts ---------------------------------------------------------------------------------------------------

simple("mount_tmpfs", "mount", b"none", b"/tmp", b"tmpfs", 0, None)
simple("mount_bind", "mount", b"/usr", b"/tmp", None, 4096, None)
simple("mount_remount_writable", "mount", None, b"/usr", None, 4096 | 32, None)
simple("mount_proc", "mount", b"proc", b"/tmp", b"proc", 0, None)
simple("umount", "umount2", b"/proc/1", 2)
simple("mount_by_fsopen", "fsopen", b"tmpfs", 0)
simple("mount_by_fsconfig", "fsconfig", 0, 0, None, None, 0)
simple("mount_by_fsmount", "fsmount", 0, 0, 0)
simple("mount_by_open_tree", "open_tree", -100, b"/", 1)
simple("mount_by_move_mount", "move_mount", -100, b"/usr", -100, b"/tmp", 0)
simple("mount_setattr", "mount_setattr", -100, b"/usr", 0, None, 0)
simple("chroot", "chroot", b"/tmp")
simple("pivot_root", "pivot_root", b"/tmp", b"/tmp")
for _name, _flag in (
    ("user", 0x10000000),
    ("mount", 0x00020000),
    ("net", 0x40000000),
    ("pid", 0x20000000),
    ("ipc", 0x08000000),
    ("uts", 0x04000000),
    ("cgroup", 0x02000000),
    ("time", 0x00000080),
):
    simple(f"unshare_{_name}", "unshare", _flag)
    if _name != "time":
        simple(f"clone_new_{_name}_namespace", "clone", _flag | signal.SIGCHLD, 0, 0, 0, 0)
simple("clone3_new_user_namespace", "clone3", ctypes.addressof(ctypes.create_string_buffer(88)), 88)


@probe
def setns_to_process_1() -> str:
    return f"joined {call('setns', os.open('/proc/self/ns/net', os.O_RDONLY), 0)}"


@probe
def write_of_the_uid_map() -> str:
    with open("/proc/self/uid_map", "w") as handle:
        handle.write("0 0 1")
    return "written"


@probe
def control_groups() -> str:
    group = read("/proc/self/cgroup").splitlines()
    if os.path.exists("/sys/fs/cgroup"):
        return "sees /sys/fs/cgroup"
    if any(not line.endswith(":/") and "swapbench" in line for line in group):
        return f"sees its own group {group}"
    raise OSError(errno.ENOENT, "none to be seen")


# --- the kernel's wide doors -------------------------------------------------------------------------------------------------

simple("io_uring", "io_uring_setup", 8, ctypes.addressof(ctypes.create_string_buffer(120)))
simple("bpf", "bpf", 0, ctypes.addressof(ctypes.create_string_buffer(128)), 72)
simple("perf_event_open", "perf_event_open", ctypes.addressof(ctypes.create_string_buffer(128)), 0, -1, -1, 0)
simple("userfaultfd", "userfaultfd", 1)
simple("keyctl", "keyctl", 0, -3, 1, 0, 0)
simple("add_key", "add_key", b"user", b"name", b"data", 4, -3)
simple("request_key", "request_key", b"user", b"name", None, 0)
simple("kexec_load", "kexec_load", 0, 0, 0, 0)
simple("kexec_file_load", "kexec_file_load", 0, 0, 0, 0, 0)
simple("init_module", "init_module", 0, 0, b"")
simple("finit_module", "finit_module", 0, b"", 0)
simple("delete_module", "delete_module", b"ext4", 0)
simple("name_to_handle_at", "name_to_handle_at", -100, b"/", 0, 0, 0)
simple("open_by_handle_at", "open_by_handle_at", 0, 0, 0)
simple("personality_without_randomisation", "personality", 0x0040000)
simple("memfd_secret", "memfd_secret", 0)
simple("acct", "acct", b"/tmp/acct")
simple("swapon", "swapon", b"/tmp/swap", 0)
simple("reboot", "reboot", 0xFEE1DEAD, 672274793, 0, 0)
simple("sethostname", "sethostname", b"mine", 4)
simple("setdomainname", "setdomainname", b"mine", 4)
simple("settimeofday", "settimeofday", 0, 0)
simple("clock_settime", "clock_settime", 0, 0)
simple("adjtimex", "adjtimex", ctypes.addressof(ctypes.create_string_buffer(256)))
simple("syslog", "syslog", 3, 0, 0)
simple("quotactl", "quotactl", 0, 0, 0, 0)
simple("fanotify", "fanotify_init", 0, 0)
simple("inotify", "inotify_init1", 0)
simple("move_pages", "move_pages", 0, 0, 0, 0, 0, 0)
simple("vhangup", "vhangup")
if X86:
    simple("iopl", "iopl", 3)
    simple("ioperm", "ioperm", 0x70, 1, 1)
    simple("modify_ldt", "modify_ldt", 0, 0, 0)
PROBES["a_call_newer_than_the_filter"] = lambda: f"returned {raw(600)}"


@probe
def input_pushed_to_a_terminal() -> str:
    import fcntl

    fcntl.ioctl(0, 0x5412, b"x")
    return "pushed"


@probe
def watch_on_a_bound_folder() -> str:
    import fcntl

    fcntl.fcntl(os.open("/usr", os.O_RDONLY), 1026, 1)
    return "watching"


@probe
def other_processors() -> str:
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return "moved"


@probe
def realtime_priority() -> str:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    return "set"


@probe
def better_priority() -> str:
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    return "set"


@probe
def uid_0() -> str:
    os.setuid(0)
    return f"is {os.getuid()}"


@probe
def gid_0() -> str:
    os.setgid(0)
    return f"is {os.getgid()}"


@probe
def other_groups() -> str:
    os.setgroups([0])
    return f"has {os.getgroups()}"


@probe
def capabilities() -> str:
    status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines() if ":\t" in line)
    held = {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)}
    if held or status["NoNewPrivs"] != "1" or status["Seccomp"] != "2" or set(status["Uid"].split()) != {"65534"}:
        return f"holds {held}, {status['NoNewPrivs']=}, {status['Seccomp']=}, {status['Uid']=}"
    raise OSError(errno.EPERM, "none")


@probe
def own_limits_raised() -> str:
    for name in ("RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK"):
        limit = getattr(resource, name)
        _, hard = resource.getrlimit(limit)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (hard + 1, hard + 1))
            return f"raised {name}"
    raise OSError(errno.EPERM, "none")


# --- files and devices -------------------------------------------------------------------------------------------------------


@probe
def character_device() -> str:
    os.mknod("/tmp/mem", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    return "made"


@probe
def block_device() -> str:
    os.mknod("/tmp/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    return "made"


@probe
def devices_beyond_the_plain_ones() -> str:
    plain = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr"}
    if set(os.listdir("/dev")) == plain:
        raise OSError(errno.ENOENT, "none")
    return f"sees {sorted(set(os.listdir('/dev')) - plain)}"


opening("terminals", "/dev/ptmx", os.O_RDWR)
opening("shared_memory_of_the_machine", "/dev/shm/x", os.O_RDWR | os.O_CREAT)
opening("file_in_dev", "/dev/x", os.O_RDWR | os.O_CREAT)
opening("file_in_root", "/x", os.O_RDWR | os.O_CREAT)
opening("file_in_etc", "/etc/x", os.O_RDWR | os.O_CREAT)
opening("file_in_proc_1", "/proc/1/x", os.O_RDWR | os.O_CREAT)
opening("sys", "/sys/kernel/mm/transparent_hugepage/enabled", os.O_WRONLY)
opening("sys_power", "/sys/power/state", os.O_WRONLY)
opening("sysctl_core_pattern", "/proc/sys/kernel/core_pattern", os.O_WRONLY)
opening("sysctl_hostname", "/proc/sys/kernel/hostname", os.O_WRONLY)
opening("sysctl_drop_caches", "/proc/sys/vm/drop_caches", os.O_WRONLY)
opening("sysctl_user_namespaces", "/proc/sys/user/max_user_namespaces", os.O_WRONLY)
opening("sysrq", "/proc/sysrq-trigger", os.O_WRONLY)
opening("passwords", "/etc/shadow")
opening("users", "/etc/passwd")
PROBES["file_of_the_worker"] = lambda: read(SETTINGS["file"])


@probe
def homes() -> str:
    seen = []
    for folder in ("/home", "/root", "/var", "/run", "/opt", "/srv", "/etc", "/mnt", "/boot"):
        with contextlib.suppress(FileNotFoundError):
            seen += [f"{folder}/{name}" for name in os.listdir(folder)]
    # What lies on the way to a bind has to be there, empty but for that.
    strange = [
        path for path in seen if not any(f"{bind}/".startswith(f"{path}/") for bind in SETTINGS["binds"].split(":"))
    ]
    if not strange:
        raise OSError(errno.ENOENT, "none")
    return f"sees {strange}"


@probe
def write_to_a_bind() -> str:
    for folder in SETTINGS["binds"].split(":"):
        target = f"{folder}/swapbench-escape" if os.path.isdir(folder) else folder
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
        else:
            os.close(descriptor)
            return f"wrote to {target}"
        if not os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"{folder} is mounted writable"
    raise OSError(errno.EROFS, "none")


@probe
def change_of_a_bind() -> str:
    for attempt in (
        lambda path: os.chmod(path, 0o777),
        lambda path: os.chown(path, 65534, 65534),
        lambda path: os.utime(path, (0, 0)),
        lambda path: os.unlink(path),
        lambda path: os.truncate(path, 0),
        lambda path: os.setxattr(path, "user.x", b"x"),
    ):
        try:
            attempt("/probe/inside.py")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EPERM, errno.EACCES):
                raise
        else:
            return "changed the program's own file"
    raise OSError(errno.EROFS, "none")


@probe
def hard_link_out_of_a_bind() -> str:
    os.link("/probe/inside.py", "/tmp/link")
    return "linked"


@probe
def setuid_binaries() -> str:
    for path in ("/usr", "/tmp", "/"):
        if not os.statvfs(path).f_flag & os.ST_NOSUID:
            return f"setuid counts on {path}"
    for path in ("/usr/bin/su", "/usr/bin/mount", "/usr/bin/sudo", "/usr/bin/passwd", "/usr/bin/newuidmap"):
        if os.path.exists(path) and os.stat(path).st_mode & stat.S_ISUID:
            done = subprocess.run([path, "-c", "id -u"], capture_output=True, stdin=subprocess.DEVNULL, timeout=10)
            if done.stdout.strip() == b"0":
                return f"{path} gave uid 0"
    raise OSError(errno.EPERM, "none gives anything")


@probe
def memory_files_where_nothing_counts_them() -> str:
    if SETTINGS["memory_counted"] == "yes":
        raise OSError(errno.EPERM, "counted by the control group")
    return f"opened {call('memfd_create', b'x', 0)}"


# --- what must work ----------------------------------------------------------------------------------------------------------


def works() -> dict[str, str]:
    """What honest modules need; each value is "yes" or what went wrong."""
    found = {}

    def attempt(name: str, function: Callable[[], None]) -> None:
        try:
            function()
            found[name] = "yes"
        except BaseException as error:
            found[name] = f"{type(error).__name__}: {error}"

    def threads() -> None:
        seen: list[int] = []
        running = [threading.Thread(target=lambda: seen.append(1)) for _ in range(16)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert len(seen) == 16

    def children() -> None:
        assert subprocess.run(["/usr/bin/env"], capture_output=True, env={"A": "b"}).stdout == b"A=b\n"

    def forks() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5

    def unix_pair() -> None:
        left, right = socket.socketpair()
        left.send(b"x")
        assert right.recv(1) == b"x"

    def executable_scratch() -> None:
        with open("/tmp/run.sh", "w") as handle:
            handle.write("#!/bin/sh\nexit 3\n")
        os.chmod("/tmp/run.sh", 0o700)
        assert subprocess.run(["/tmp/run.sh"]).returncode == 3

    def executable_memory() -> None:
        import mmap

        with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(b"\xc3")

    def randomness() -> None:
        with open("/dev/urandom", "rb") as source:
            assert os.urandom(8) != source.read(8)

    def fifo() -> None:
        os.mkfifo("/tmp/fifo")

    for function in (threads, children, forks, unix_pair, executable_scratch, executable_memory, randomness, fifo):
        attempt(function.__name__, function)
    return found


def main() -> None:
    channel = socket.socket(fileno=3)
    SETTINGS.update(json.loads(channel.recv(65536)))
    for name, attempt in PROBES.items():
        try:
            message = {"name": name, "through": attempt()}
        except OSError as error:
            message = {
                "name": name,
                "errno": errno.errorcode.get(error.errno or 0, str(error.errno)),
                "detail": str(error),
            }
        except Exception as error:
            message = {"name": name, "through": f"the probe itself failed: {type(error).__name__}: {error}"}
        channel.send(json.dumps(message).encode())
    channel.send(json.dumps({"name": "works", "works": works()}).encode())
    channel.send(json.dumps({"name": "end"}).encode())
    channel.recv(1)


if __name__ == "__main__":
    main()
    sys.exit(0)
