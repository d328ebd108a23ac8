"""Waits for sockets and other descriptors, and calls the function that each was given."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

READ, READ_OR_WRITE = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Poller:
    """An epoll instance with a handler for each descriptor."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._sockets: set[int] = set()

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever the descriptor can be read."""
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, READ)

    def watch_socket(self, sock: socket.socket, handler: Callable[[], None], events: int = READ) -> None:
        """Call `handler` whenever packets lie in the socket; with READ_OR_WRITE also when it can be written."""
        descriptor = sock.fileno()
        self._sockets.add(descriptor)
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, events)

    def rewatch(self, sock: socket.socket, events: int) -> None:
        """Wait for these events from now on."""
        self._poll.modify(sock.fileno(), events)

    def forget(self, descriptor: int) -> None:
        """Wait for this descriptor no longer; call this before it is closed."""
        self._poll.unregister(descriptor)
        self._sockets.discard(descriptor)
        del self._handlers[descriptor]

    def wait(self, timeout: float) -> list[int]:
        """Return what is ready within `timeout` seconds, -1 for as long as it takes."""
        return [descriptor for descriptor, _ in self._poll.poll(timeout)]

    def handle(self, ready: list[int]) -> None:
        """Call the handlers of these descriptors; one may have been forgotten by the handler of another."""
        handlers = self._handlers
        for descriptor in ready:
            if descriptor in handlers:
                handlers[descriptor]()

    def read_all(self) -> None:
        """Read all sockets until they are empty: what lies unread in one of them is not lost.

        It ends because nothing is sent meanwhile but the answers to what is read.
        """
        while ready := [descriptor for descriptor in self.wait(0) if descriptor in self._sockets]:
            self.handle(ready)

    def close(self) -> None:
        self._poll.close()
