"""TCP connections that outlive reloads: numbered records, echoed and compared; breaks and stalls with their times."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import deque
from typing import Literal

from lab.system.sockets import Address, bound_socket, retransmits
from lab.traffic.flows import Break, Flow, Stall, TcpReport

HEADER = struct.Struct("!QIQ")
WINDOW = 64
"""Records under way at most: during a stall nothing is added but what fits the socket's buffer by far."""


class TcpStream:
    """A connection between two namespaces, both ends of it."""

    def __init__(self, index: int, flow: Flow, token: int, size: int, stall_after_ns: int) -> None:
        self.flow = flow
        self.sent = 0
        self.received = 0
        self.broken: Break | None = None
        self._prefix = (token, index)
        padding = max(size - HEADER.size, 0)
        self._padding = (bytes(range(256)) * (padding // 256 + 1))[:padding]
        self._record_size = HEADER.size + len(self._padding)
        self._stall_after = stall_after_ns
        self._stalls: list[Stall] = []
        self._progress_ns = 0
        self._longest = 0
        self._corrupted = 0
        self._bytes_received = 0
        self._retransmits = 0
        self._under_way: deque[int] = deque()
        self._unsent = bytearray()
        self._unechoed = bytearray()
        self._partial = bytearray()
        self._sockets: list[socket.socket] = []

    def open(self, listener: socket.socket, deadline: float) -> None:
        """Connect, and accept the connection; OSError if that fails before `deadline` (time.monotonic)."""
        flow = self.flow
        source = bound_socket(Address(flow.source_ns, flow.source_ip, 0), socket.SOCK_STREAM, deadline)
        self._sockets.append(source)
        source.settimeout(max(deadline - time.monotonic(), 0.01))
        source.connect((flow.target_ip, flow.port))
        listener.settimeout(max(deadline - time.monotonic(), 0.01))
        while True:
            target, peer = listener.accept()
            if peer[:2] == source.getsockname()[:2]:
                break
            target.close()
        self._sockets.append(target)
        for sock in self._sockets:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def source(self) -> socket.socket:
        return self._sockets[0]

    @property
    def target(self) -> socket.socket:
        return self._sockets[1]

    def _record(self, number: int) -> bytes:
        return HEADER.pack(*self._prefix, number) + self._padding

    def send(self, count: int = 1) -> None:
        """Send the next records, unless the connection is broken or too much is under way already."""
        if self.broken:
            return
        now = time.monotonic_ns()
        if count > 1 or len(self._under_way) < WINDOW:
            for number in range(self.sent, self.sent + count):
                self._unsent += self._record(number)
                self._under_way.append(now)
            self.sent += count
        self._flush(self.source, self._unsent, "source")
        self._flush(self.target, self._unechoed, "target")

    def _flush(self, sock: socket.socket, data: bytearray, side: Literal["source", "target"]) -> None:
        if not data or self.broken:
            return
        try:
            del data[: sock.send(data)]
        except BlockingIOError:
            # The buffer is full, as it is when nothing arrives for long. The next send() tries again.
            return
        except OSError as error:
            self._break(side, error)

    def _receive(self, sock: socket.socket, side: Literal["source", "target"]) -> bytes:
        if self.broken:
            return b""
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._break(side, error)
            return b""
        if not data:
            self._break(side, None)
        return data

    def target_readable(self) -> None:
        """Echo what has arrived."""
        self._unechoed += self._receive(self.target, "target")
        self._flush(self.target, self._unechoed, "target")

    def source_readable(self) -> None:
        """Compare the echo with the records, one by one."""
        data = self._receive(self.source, "source")
        if not data:
            return
        now = time.monotonic_ns()
        self._end_stall(now)
        self._bytes_received += len(data)
        self._partial += data
        size = self._record_size
        while len(self._partial) >= size:
            if self._partial[:size] != self._record(self.received + self._corrupted):
                self._corrupted += 1
            else:
                self.received += 1
            del self._partial[:size]
            if self._under_way:
                self._longest = max(self._longest, now - self._under_way.popleft())
        self._progress_ns = now

    def _waiting_since(self) -> int | None:
        return max(self._under_way[0], self._progress_ns) if self._under_way else None

    def _end_stall(self, now: int) -> None:
        since = self._waiting_since()
        if since is not None and now - since > self._stall_after:
            self._stalls.append(Stall(since, now))

    def _break(self, side: Literal["source", "target"], error: OSError | None) -> None:
        name = "EOF" if error is None else errno.errorcode.get(error.errno or 0, str(error))
        self.broken = Break(time.monotonic_ns(), name, side)
        self._retransmits = self._count_retransmits()
        # The other end learns of it in its own way; it has nothing to add.
        for sock in self._sockets:
            sock.close()

    def _count_retransmits(self) -> int:
        return sum(retransmits(sock) for sock in self._sockets if sock.fileno() >= 0)

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the records [first, end) have no echo yet."""
        done = self.received + self._corrupted
        return max(end - max(first, done), 0)

    def idle(self, since_ns: int) -> bool:
        """Tell whether there is nothing to wait for: all echoed, or broken, or nothing has moved since `since_ns`."""
        waiting = self._waiting_since()
        return self.broken is not None or waiting is None or waiting < since_ns

    def report(self) -> TcpReport:
        """Return the account so far."""
        stalls = list(self._stalls)
        since = self._waiting_since()
        if since is not None and not self.broken and time.monotonic_ns() - since > self._stall_after:
            stalls.append(Stall(since, None))
        return TcpReport(
            name=self.flow.name,
            sent=self.sent,
            received=self.received,
            in_flight=self.sent - self.received - self._corrupted,
            corrupted=self._corrupted,
            bytes_sent=self.sent * self._record_size - len(self._unsent),
            bytes_received=self._bytes_received,
            retransmits=self._retransmits if self.broken else self._count_retransmits(),
            longest_ns=self._longest,
            stalls=tuple(stalls),
            broken=self.broken,
        )

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def listen(address: Address, deadline: float) -> socket.socket:
    """Return a listening socket in the address's namespace."""
    sock = bound_socket(address, socket.SOCK_STREAM, deadline)
    sock.listen(1024)
    return sock
