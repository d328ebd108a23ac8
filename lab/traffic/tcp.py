"""TCP connections that outlive reloads: numbered records, echoed and compared; breaks and stalls with their times."""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from typing import Literal

from lab.system.sockets import Address, bound_socket
from lab.traffic.delays import DelayRecorder, Pauses
from lab.traffic.flows import Flow
from lab.traffic.payload import Payloads
from lab.traffic.poller import Poller
from lab.traffic.report import Connections, Event, FlowReport, LostPacket
from lab.traffic.segments import Segments

WINDOW = 64
"""Records under way at most: during a stall nothing is added but what fits the socket's buffer by far."""

Side = Literal["source", "target"]


class TcpStream:
    """A connection between two namespaces, both ends of it."""

    def __init__(
        self,
        flow: Flow,
        payloads: Payloads,
        delays: DelayRecorder,
        pauses: Pauses,
        listener: socket.socket,
        stall_after_ns: int,
    ) -> None:
        self.flow = flow
        self.sent = 0
        self.received = 0
        self.broken = ""
        self._payloads = payloads
        self._delays = delays
        self._pauses = pauses
        self._listener = listener
        self._stall_after = stall_after_ns
        self._events: list[Event] = []
        self._progress_ns = 0
        self._answered = 0
        self._bytes_sent = 0
        self._bytes_received = 0
        self._under_way: deque[int] = deque()
        self._unsent = bytearray()
        self._unechoed = bytearray()
        self._partial = bytearray()
        self._sockets: list[socket.socket] = []
        self._segments: Segments
        self._poller: Poller

    def open(self, poller: Poller, deadline: float) -> None:
        """Connect, and accept the connection; OSError if that fails before `deadline` (time.monotonic)."""
        flow, listener = self.flow, self._listener
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
        self._segments = Segments(source, target)
        self._poller = poller
        poller.watch_socket(self._source, self._source_readable)
        poller.watch_socket(self._target, self._target_readable)

    @property
    def _source(self) -> socket.socket:
        return self._sockets[0]

    @property
    def _target(self) -> socket.socket:
        return self._sockets[1]

    def send(self, count: int = 1) -> None:
        """Send the next records, unless the connection is broken or too much is under way already."""
        if self.broken:
            return
        now = time.monotonic_ns()
        self._segments.look(self.sent, now, quiet=not self._under_way)
        if count > 1 or len(self._under_way) < WINDOW:
            for number in range(self.sent, self.sent + count):
                self._unsent += self._payloads.of(number)
                self._under_way.append(now)
            self.sent += count
        self._flush(self._source, self._unsent, "source")
        self._flush(self._target, self._unechoed, "target")

    def _flush(self, sock: socket.socket, data: bytearray, side: Side) -> None:
        if not data or self.broken:
            return
        try:
            taken = sock.send(data)
        except BlockingIOError:
            # The buffer is full, as it is when nothing arrives for long. The next send() tries again.
            return
        except OSError as error:
            self._break(side, error)
        else:
            del data[:taken]
            self._bytes_sent += taken if side == "source" else 0

    def _receive(self, sock: socket.socket, side: Side) -> bytes:
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

    def _target_readable(self) -> None:
        """Echo what has arrived."""
        self._unechoed += self._receive(self._target, "target")
        self._flush(self._target, self._unechoed, "target")

    def _source_readable(self) -> None:
        """Compare the echo with the records, one by one."""
        data = self._receive(self._source, "source")
        if not data:
            return
        now = time.monotonic_ns()
        self._end_stall(now)
        self._bytes_received += len(data)
        self._partial += data
        while self._answered < self.sent:
            wanted = self._payloads.of(self._answered)
            if len(self._partial) < len(wanted):
                break
            sent_ns = self._under_way.popleft()
            if self._partial[: len(wanted)] == wanted:
                self.received += 1
            else:
                self._events.append(Event("corrupted", sent_ns))
            del self._partial[: len(wanted)]
            self._answered += 1
            self._delays.round_trip(sent_ns, self._delays.packet(sent_ns, now))
        self._progress_ns = now

    def _waiting_since(self) -> int | None:
        return max(self._under_way[0], self._progress_ns) if self._under_way else None

    def _end_stall(self, now: int) -> None:
        if (stall := self._stall(now)) is not None:
            self._events.append(stall)

    def _stall(self, now: int) -> Event | None:
        """Return the time without progress up to now, if it is a stall: an engine that did not run makes none."""
        since = self._waiting_since()
        if since is None or self.broken:
            return None
        lasted = now - since - self._pauses.within(since, now)
        return Event("stall", since, f"{lasted / 1e9:.1f} s") if lasted > self._stall_after else None

    def _break(self, side: Side, error: OSError | None) -> None:
        name = "EOF" if error is None else errno.errorcode.get(error.errno or 0, str(error))
        self.broken = name
        self._events.append(Event("reset", time.monotonic_ns(), f"{name} at the {side}"))
        # The other end learns of it in its own way; it has nothing to add.
        for sock in self._sockets:
            self._poller.forget(sock.fileno())
            sock.close()

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the records [first, end) have no echo yet."""
        return max(end - max(first, self._answered), 0)

    def arrivals(self, first: int, end: int) -> int:
        """Return how many of the records [first, end) have an echo."""
        return end - first - self.unanswered(first, end)

    def idle(self, since_ns: int) -> bool:
        """Tell whether there is nothing to wait for: all has arrived, it broke, or nothing moved since `since_ns`."""
        if self.broken or (not self._under_way and self._segments.all_arrived):
            return True
        return (self._waiting_since() or self._progress_ns) < since_ns

    def report(self, *, late_after_ns: int, final: bool) -> FlowReport:
        """Return the account so far; records without an echo count as lost if `final`."""
        now = time.monotonic_ns()
        if not self.broken:
            self._segments.look(self.sent, now, quiet=final or not self._under_way)
        lost = self._lost() if final else []
        stall = self._stall(now)
        return FlowReport(
            name=self.flow.name,
            protocol="tcp",
            sent=self.sent,
            delivered=self._answered,
            received=self.received,
            in_flight=0 if final else len(self._under_way),
            lost=tuple(lost),
            events=(
                *self._events,
                *([stall] if stall else ()),
                *(() if self.broken else self._segments.events),
                *self._delays.late(late_after_ns),
            ),
            delays=self._delays.report(),
            connections=Connections(
                opened=1,
                bytes_sent=self._bytes_sent,
                bytes_received=self._bytes_received,
                retransmits=self._segments.retransmits,
                spurious=self._segments.spurious,
            ),
        )

    def _lost(self) -> list[LostPacket]:
        """Return the missing segments; without any, or if the connection broke, the records without an echo."""
        if not self.broken and self._segments.lost:
            return self._segments.lost
        return [LostPacket(n, at, "exchange", self.broken) for n, at in enumerate(self._under_way, self._answered)]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def listen(address: Address, deadline: float) -> socket.socket:
    """Return a listening socket in the address's namespace."""
    sock = bound_socket(address, socket.SOCK_STREAM, deadline)
    sock.listen(1024)
    return sock
