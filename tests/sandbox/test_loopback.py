"""What a profiler is let to do: speak to itself over internet sockets. It reaches nobody, and a host that is judged makes no such socket."""

import json
import socket

from tests.sandbox.conftest import Hosts

PROGRAM = """
import errno, json, socket, sys
def tried(work):
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def itself():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 5) as one:
        other, _ = server.accept()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
def reach(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(3)
        one.connect(address)
end = socket.socket(fileno=3)
found = {
    "itself": tried(itself),
    "the worker": tried(lambda: reach(socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))),
    "the world": tried(lambda: reach(socket.AF_INET, ("192.0.2.1", 80))),
    "the world, six": tried(lambda: reach(socket.AF_INET6, ("2001:db8::1", 80))),
    "packets": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "raw": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
}
end.send(json.dumps(found).encode())
"""


def found(hosts: Hosts, pair: tuple[socket.socket, socket.socket], loopback: bool) -> dict[str, str]:
    """What came of each try, while a server of the worker's listens on its own 127.0.0.1."""
    ours, theirs = pair
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        hosts.run(PROGRAM.replace("sys.argv[1]", str(port)), end=theirs, loopback=loopback)
        told: dict[str, str] = json.loads(ours.recv(4096))
        server.settimeout(0.1)
        try:
            server.accept()
        except TimeoutError:
            return told
    raise AssertionError("the host reached the worker")


def test_with_loopback_a_host_reaches_itself_and_nobody_else(
    hosts: Hosts, pair: tuple[socket.socket, socket.socket]
) -> None:
    told = found(hosts, pair, loopback=True)
    assert told.pop("itself") == "done"
    assert told == {
        "the worker": "ECONNREFUSED",
        "the world": "ENETUNREACH",
        "the world, six": "ENETUNREACH",
        "packets": "EPERM",
        "netlink": "EPERM",
        "raw": "EPERM",
    }


def test_without_it_no_such_socket_is_made(hosts: Hosts, pair: tuple[socket.socket, socket.socket]) -> None:
    assert set(found(hosts, pair, loopback=False).values()) == {"EPERM"}
