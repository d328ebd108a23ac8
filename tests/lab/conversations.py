"""Conversations of two pods over real sockets, where only the client may open them, and what is tracked of each."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from datapath.kernel.map import open_pin
from lab.abi.conntrack import TUPLE_F_IN, TUPLE_F_OUT, CtEntry, CtTuple
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.node.topology import HOST, NodeSpec, PodSpec
from lab.system.netns import enter, sysctl
from lab.system.sockets import Address, bound_socket
from lab.watch import metrics
from lab.watch.monitor import Monitor
from tests.lab.labs import unique_name

CLIENT, SERVER = "client", "server"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
DEADLINE = 10.0
"""Seconds after which something that should happen has not."""

CLOSE, SYN_TIMEOUT, TCP_LIFETIME = 10, 60, 21600
"""Seconds that an entry lasts (bpf/lib/config.h)."""

DENIED_IN, DENIED_OUT = (133, metrics.INGRESS), (133, metrics.EGRESS)

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
TCP_REPAIR = 19
TCPI_SEGS_OUT = 136
"""What Python's socket module lacks of uapi's socket.h and tcp.h; the last is an offset in tcp_info, of two words."""

OPEN, CLOSED = {"seen_non_syn"}, {"seen_non_syn", "rx_closing", "tx_closing"}
"""Flags of an entry whose connection has been opened, and of one that is over."""

BULK = bytes(range(256)) * (1 << 13)
"""Two megabytes: more than any window at the start, so that acknowledgements must get through."""

_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
"""A classic BPF program: return 0."""


def policies(
    *, client_in: bool = False, client_out: bool = True, server_in: bool = True, server_out: bool = False
) -> list[dict[str, Any]]:
    """Return who may open connections; by default only the client may, to the server and to the world.

    Not even the host may open one to the client: what it says about a connection passes because of the connection.
    """
    everybody = ["all"]
    return [
        {
            "name": CLIENT,
            "endpoint": CLIENT,
            "ingress": [{"fromEntities": everybody} if client_in else {}],
            "ingressDeny": [] if client_in else [{"fromEntities": ["host"]}],
            "egress": [{"toEntities": everybody} if client_out else {}],
        },
        {
            "name": SERVER,
            "endpoint": SERVER,
            "ingress": [{"fromEntities": everybody} if server_in else {}],
            "egress": [{"toEntities": everybody} if server_out else {}],
        },
    ]


@contextmanager
def loaded(*, endpoint_routes: bool, library: Path | None = None) -> Iterator[Agent]:
    """A node with a client and a server, loaded, on which only the client may open connections."""
    pods = (PodSpec(CLIENT), PodSpec(SERVER))
    spec = NodeSpec(unique_name("ct"), pods=pods, endpoint_routes=endpoint_routes)
    with Node(spec) as node, Agent(node, library=library) as agent:
        agent.start()
        agent.apply_policies(policies())
        yield agent


def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for a condition: the datapath runs in softirqs, which may be late."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.002)


def lasts(entry: CtEntry) -> int:
    """Return how long an entry holds from now on, in seconds; the clock may be at the end of one."""
    return entry.lifetime - int(time.clock_gettime(time.CLOCK_MONOTONIC))


@contextmanager
def deaf(*sockets: socket.socket) -> Iterator[None]:
    """Let the sockets drop whatever arrives: behind the datapath, as if it had been lost on its last hop."""
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
    yield
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def vanish(sock: socket.socket) -> None:
    """Close without a word, as when the machine has crashed."""
    sock.setsockopt(TCP, TCP_REPAIR, 1)
    sock.close()


def segments(sock: socket.socket) -> tuple[int, int]:
    """Return how many segments a TCP socket has sent and received, by its own account."""
    info = sock.getsockopt(TCP, socket.TCP_INFO, 256)
    sent, received = struct.unpack_from("=II", info, TCPI_SEGS_OUT)
    return int(sent), int(received)


def receive(sock: socket.socket) -> bytes:
    """Return everything up to the other side's end."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def transfer(source: socket.socket, target: socket.socket, data: bytes) -> None:
    """Send data one way and have it arrive, nothing more and nothing less."""
    source.setblocking(False)
    sent, received = 0, bytearray()
    deadline = time.monotonic() + DEADLINE
    while len(received) < len(data):
        assert time.monotonic() < deadline, f"{len(received)} of {len(data)} bytes have arrived"
        if sent < len(data):
            with suppress(BlockingIOError):
                sent += source.send(data[sent : sent + (1 << 20)])
        received += target.recv(1 << 20)
    source.settimeout(DEADLINE)
    assert received == data


@dataclass(frozen=True, slots=True)
class Conversation:
    """A connection: both ends of it, and the first packet's addresses and ports."""

    pods: Pods
    client: socket.socket
    server: socket.socket
    flow: CtTuple

    def entry(self, *, out: bool) -> CtEntry:
        """Return the entry of the client's side (`out`) or of the server's."""
        entry = self.pods.entry(self.flow, out=out)
        assert entry is not None, f"no entry of {'the client' if out else 'the server'}"
        return entry

    def settled(self, *, out: bool, names: set[str], lifetime: int) -> None:
        """Wait until an entry has these flags, and see which of the lifetimes it has been given."""
        until(lambda: self.entry(out=out).names == names, f"{names} wanted")
        shorter = [each for each in (CLOSE, SYN_TIMEOUT) if each < lifetime]
        assert lasts(self.entry(out=out)) <= lifetime
        assert not shorter or lasts(self.entry(out=out)) > shorter[-1]

    def talk(self) -> None:
        """A question and an answer."""
        self.client.sendall(b"question")
        assert self.server.recv(64) == b"question"
        self.server.sendall(b"answer")
        assert self.client.recv(64) == b"answer"


class Pods:
    """Client and server of a node, in one family; sockets live as long as `stack`."""

    def __init__(self, agent: Agent, version: int, stack: ExitStack) -> None:
        self.agent, self.node, self.version = agent, agent.node, version
        self._stack = stack

    def address(self, name: str) -> IPv4Address | IPv6Address:
        pod = self.node.pod(name)
        return pod.ipv4 if self.version == 4 else pod.ipv6

    def bound(self, name: str, port: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Return a socket of a pod."""
        address = Address(str(self.node.netns(name)), str(self.address(name)), port)
        sock = self._stack.enter_context(bound_socket(address, kind, time.monotonic() + DEADLINE))
        sock.settimeout(DEADLINE)
        return sock

    def listen(self) -> socket.socket:
        """Return a socket of the server that listens."""
        sock = self.bound(SERVER)
        sock.listen()
        return sock

    def connect(self, listener: socket.socket, port: int = 0) -> Conversation:
        """Open a connection, from this port of the client if it is not 0."""
        client = self.bound(CLIENT, port)
        until(lambda: connected(client, listener), "no address free to connect from")
        return self.accepted(client, listener)

    def accepted(self, client: socket.socket, listener: socket.socket) -> Conversation:
        """Return the connection of a client that has been let in."""
        server = self._stack.enter_context(listener.accept()[0])
        server.settimeout(DEADLINE)
        assert server.getpeername() == client.getsockname()
        return Conversation(self, client, server, self.flow(client, listener))

    def flow(self, client: socket.socket, server: socket.socket, protocol: int = TCP) -> CtTuple:
        """Return what a connection between two sockets is known by."""
        sport, dport = client.getsockname()[1], server.getsockname()[1]
        return CtTuple(self.address(CLIENT), self.address(SERVER), sport, dport, protocol)

    def table(self, protocol: int) -> Path:
        kind = "" if protocol == TCP else "_any"
        return self.agent.config.globals / f"cilium_ct{kind}{self.version}_global"

    def entry(self, flow: CtTuple, *, out: bool) -> CtEntry | None:
        """Return an entry, of the side that began (`out`) or of the other."""
        with open_pin(self.table(flow.protocol)) as pinned:
            value = pinned.lookup(_key(flow, out=out))
        return None if value is None else CtEntry.unpack(value)

    def age(self, flow: CtTuple, seconds: int) -> None:
        """Let a connection be as if nothing had been heard of it for so long."""
        with open_pin(self.table(flow.protocol)) as pinned:
            for out in (True, False):
                entry = self.entry(flow, out=out)
                assert entry is not None
                pinned.update(_key(flow, out=out), replace(entry, lifetime=entry.lifetime - seconds).pack())

    def forget(self, flow: CtTuple, *, out: bool) -> None:
        """Delete an entry."""
        with open_pin(self.table(flow.protocol)) as pinned:
            assert pinned.delete(_key(flow, out=out))

    @contextmanager
    def allowed(self, **changes: bool) -> Iterator[None]:
        """Let other policies hold for a while; see `policies`."""
        self.agent.apply_policies(policies(**changes))
        try:
            yield
        finally:
            self.agent.apply_policies(policies())

    @contextmanager
    def dropping(self, *reasons: tuple[int, int]) -> Iterator[None]:
        """Wait at the end until packets have been dropped for these reasons; none may be for any other."""
        with Monitor(self.node) as monitor:
            before = metrics.read(self.node)
            yield
            found: dict[tuple[int, int], int] = {}

            def counted() -> bool:
                found.clear()
                found.update(metrics.read(self.node).drops_since(before))
                return found.keys() >= set(reasons)

            until(counted, f"drops for {reasons} wanted")
            assert found.keys() == set(reasons), [found, *(str(event) for event in monitor.read(0.5))]

    def reload(self) -> None:
        """Reload both pods and the host."""
        for subject in (CLIENT, SERVER, HOST):
            self.agent.reload(subject)

    def sysctl(self, name: str, **values: int) -> None:
        """Set net.ipv4 settings of a pod."""
        with enter(self.node.netns(name)):
            sysctl([(f"ipv4/{key}", str(value)) for key, value in values.items()])


def attempt(source: socket.socket, target: socket.socket) -> None:
    """Send a SYN, and do not wait for what becomes of it."""
    source.setblocking(False)
    assert source.connect_ex(target.getsockname()[:2]) == errno.EINPROGRESS
    source.settimeout(DEADLINE)


def close(talk: Conversation, first: str) -> int:
    """Close a connection from one side and then the other; return the client's port."""
    ends = (talk.client, talk.server) if first == CLIENT else (talk.server, talk.client)
    ends[0].shutdown(socket.SHUT_WR)
    assert ends[1].recv(1) == b""
    ends[1].close()
    assert ends[0].recv(1) == b""
    ends[0].close()
    for out in (True, False):
        talk.settled(out=out, names=CLOSED, lifetime=CLOSE)
    return talk.flow.sport


def connected(client: socket.socket, listener: socket.socket) -> bool:
    """Connect; False if the kernel still keeps the address for an old connection."""
    try:
        client.connect(listener.getsockname()[:2])
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return False
    return True


def back(flow: CtTuple) -> CtTuple:
    """Return the same connection as if the other side had begun it."""
    return replace(flow, source=flow.destination, destination=flow.source, sport=flow.dport, dport=flow.sport)


def _key(flow: CtTuple, *, out: bool) -> bytes:
    return replace(flow, flags=TUPLE_F_OUT if out else TUPLE_F_IN).pack()
