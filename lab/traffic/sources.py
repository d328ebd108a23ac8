"""The sockets that a flow sends from: one, or a pool whose sockets take a new port for a new connection."""

from __future__ import annotations

import socket
import time

from lab.system.sockets import Address, bound_socket, disconnect
from lab.traffic.flows import Flow

_POOL = 4
"""Sockets of a fresh flow: so many packets can be under way, each in a connection of its own."""


class NewConnections:
    """How many connections a fresh flow may begin: 40 at once, and one more every 100 ms.

    Connection tracking keeps an entry of UDP and ICMP for 60 seconds, and its maps must not overflow. What is denied
    leaves no entry.
    """

    _AT_ONCE, _EVERY_NS = 40, 100_000_000

    def __init__(self, flow: Flow) -> None:
        self._wanted = flow.fresh
        self._free = flow.denied
        self._spare = self._AT_ONCE
        self._filled_ns = time.monotonic_ns()

    def take(self) -> bool:
        """Tell whether a new connection may begin now, and count it."""
        if not self._wanted or self._free:
            return self._wanted
        now = time.monotonic_ns()
        more, rest = divmod(now - self._filled_ns, self._EVERY_NS)
        self._filled_ns = now - rest
        self._spare = min(self._spare + more, self._AT_ONCE)
        if self._spare == 0:
            return False
        self._spare -= 1
        return True


class Source:
    """A socket and whom it sends to; `waiting` packets that were sent from it have no answer yet."""

    __slots__ = ("_connected", "_peer", "socket", "used", "waiting")

    def __init__(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        self.socket = sock
        self.waiting = 0
        self.used = False
        self._peer = peer
        self._connected = False

    def connect(self) -> None:
        """Connect the socket unless it is; OSError if no way leads to the peer."""
        if not self._connected:
            self.socket.connect(self._peer)
            self._connected = True

    def disconnect(self) -> None:
        """Give up the port: the next packet is of another connection."""
        self._connected = False
        disconnect(self.socket)

    def send(self, packet: bytes) -> None:
        """Send a packet, of a new connection if there is none; OSError if the kernel refuses."""
        self.connect()
        self.socket.send(packet)


class Sources:
    """The UDP sockets of one flow."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._peer = (flow.target_ip, flow.port)
        self._new = NewConnections(flow)
        self.all: list[Source] = []

    def open(self, deadline: float) -> None:
        """Open and connect them; OSError if the kernel refuses."""
        flow = self._flow
        for _ in range(_POOL if flow.fresh else 1):
            sock = bound_socket(Address(flow.source_ns, flow.source_ip, 0), socket.SOCK_DGRAM, deadline)
            source = Source(sock, self._peer)
            self.all.append(source)
            sock.setblocking(False)
            # Two sockets that both allow it might get the same port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            source.connect()

    def take(self, number: int) -> Source:
        """Return the socket for this packet; for a new connection if the flow is fresh and nothing under way on it."""
        source = self.all[number % len(self.all)]
        if source.used and not source.waiting and self._new.take():
            source.disconnect()
        source.used = True
        return source

    def close(self) -> None:
        for source in self.all:
            source.socket.close()
