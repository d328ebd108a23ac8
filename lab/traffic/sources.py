"""The sockets that a flow sends from: one, or a pool whose sockets take a new port for a new connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from lab.system.sockets import Address, bound_socket, new_source_port
from lab.traffic.flows import Flow

_POOL = 4
"""Sockets of a fresh flow: so many packets can be under way, each in a connection of its own."""

_NEW_AT_ONCE, _NEW_EVERY_NS = 40, 100_000_000
"""New connections of a flow: that many at once, and one more in this time. Connection tracking keeps an entry of UDP
for 60 seconds, and its maps must not overflow."""

OnReadable = Callable[[socket.socket, Callable[[], None]], None]
"""Has a function called whenever a socket can be read."""


class Source:
    """A connected socket; `waiting` packets that were sent from it have no answer yet."""

    __slots__ = ("socket", "used", "waiting")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.waiting = 0
        self.used = False


class Sources:
    """The sockets of one flow."""

    def __init__(self, flow: Flow, kind: socket.SocketKind, deadline: float) -> None:
        """Open and connect them; OSError if the kernel refuses."""
        self._flow = flow
        self._peer = (flow.target_ip, flow.port)
        self._spare = _NEW_AT_ONCE
        self._filled_ns = time.monotonic_ns()
        self.all: list[Source] = []
        try:
            for _ in range(_POOL if flow.fresh else 1):
                sock = bound_socket(Address(flow.source_ns, flow.source_ip, 0), kind, deadline)
                self.all.append(Source(sock))
                sock.setblocking(False)
                # Two sockets that both allow it might get the same port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                if kind == socket.SOCK_DGRAM:
                    sock.connect(self._peer)
        except OSError:
            self.close()
            raise

    def take(self, number: int) -> Source:
        """Return the socket for this packet, connected anew if the flow is fresh and nothing is under way on it."""
        source = self.all[number % len(self.all)]
        if self._flow.fresh and source.used and not source.waiting and self._may_connect():
            new_source_port(source.socket, self._peer)
        source.used = True
        return source

    def _may_connect(self) -> bool:
        # What is denied leaves no entry.
        if self._flow.denied:
            return True
        now = time.monotonic_ns()
        more, rest = divmod(now - self._filled_ns, _NEW_EVERY_NS)
        self._filled_ns = now - rest
        self._spare = min(self._spare + more, _NEW_AT_ONCE)
        if self._spare == 0:
            return False
        self._spare -= 1
        return True

    def close(self) -> None:
        for source in self.all:
            source.socket.close()
