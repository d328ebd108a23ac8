"""New TCP connections all the time: each is opened, carries one record and its echo, and is closed by both ends."""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from lab.system.sockets import Address, bound_socket, disconnect, is_closed, tcp_info
from lab.traffic.account import Way
from lab.traffic.delays import DelayRecorder
from lab.traffic.flows import Flow
from lab.traffic.payload import HEADER, Payloads
from lab.traffic.poller import READ, READ_OR_WRITE, Poller
from lab.traffic.report import Connections, Direction, Event, FlowReport, LostPacket

_POOL = 4
_UNDER_WAY = 64
"""Connections under way at most, but for bursts: while nothing is answered no more are begun."""

_SETTLED_NS = 1_000_000_000
"""A segment that has not arrived after this time is lost."""

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a connection's segments: how many are `missing` of the request's and of the reply's way.

    Below zero it is how many have arrived twice. `retransmits` were sent again, `spurious` of them for nothing.
    """

    missing: tuple[int, int] = (0, 0)
    retransmits: int = 0
    spurious: int = 0


class Link:
    """One connection.

    `syns_again` and `syn_acks_again` are how often the two segments of its handshake were sent again.
    """

    __slots__ = ("data", "number", "sent_ns", "source", "syn_acks_again", "syns_again", "target", "unsent")

    def __init__(self, number: int, source: socket.socket, sent_ns: int, record: bytes) -> None:
        self.number = number
        self.source = source
        self.sent_ns = sent_ns
        self.target: socket.socket | None = None
        self.unsent = record
        self.data = bytearray()
        self.syns_again = 0
        self.syn_acks_again = 0

    def established(self) -> None:
        """Note what the source has sent so far: nothing but SYNs."""
        self.syns_again = tcp_info(self.source).retransmits

    def accepted(self, target: socket.socket) -> None:
        """Take the other end, which has sent nothing but SYN-ACKs so far."""
        self.target = target
        self.syn_acks_again = tcp_info(target).retransmits

    def settled(self) -> Settled:
        """Compare what both ends have sent with what has arrived.

        A SYN that arrives once more before the connection is open counts nowhere, but is answered, by one more SYN-ACK
        (tcp_check_req). Of SYN-ACKs the kernel counts those that arrive, and those that were sent again
        (tcp_create_openreq_child).
        """
        if self.target is None:
            return Settled()
        source, target = tcp_info(self.source), tcp_info(self.target)
        answered = min(self.syns_again, self.syn_acks_again)
        requests = source.segments_out - target.segments_in - answered
        replies = target.segments_out + 1 + self.syn_acks_again - source.segments_in
        again = source.retransmits + target.retransmits
        twice = source.duplicates + target.duplicates + answered + max(self.syn_acks_again - max(replies, 0), 0)
        return Settled((requests, replies), again, min(twice, again))

    def close(self) -> None:
        """Close both ends, the source first."""
        try:
            self.source.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # reset meanwhile, or never connected
                raise
        if self.target is not None:
            self.target.close()


class TcpConnections:
    """The source of a flow whose records each have a connection of their own."""

    def __init__(self, flow: Flow, payloads: Payloads, delays: DelayRecorder) -> None:
        self.flow = flow
        self.sent = 0
        self.received = 0
        self.payloads = payloads
        self._delays = delays
        self._poller: Poller
        self._way = Way("exchange")
        self._events: list[Event] = []
        self._segments: list[LostPacket] = []
        self._links: dict[int, Link] = {}
        self._settling: deque[tuple[Link, int]] = deque()
        self._bytes_sent = 0
        self._bytes_received = 0
        self._retransmits = 0
        self._spurious = 0
        self._spare: deque[socket.socket] = deque()

    def open(self, poller: Poller, deadline: float) -> None:
        """Open some sockets; OSError if the kernel refuses."""
        self._poller = poller
        for _ in range(_POOL):
            self._spare.append(self._socket(deadline))

    def _socket(self, deadline: float) -> socket.socket:
        sock = bound_socket(Address(self.flow.source_ns, self.flow.source_ip, 0), socket.SOCK_STREAM, deadline)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def send(self, count: int = 1) -> None:
        """Begin the next connections. One that the kernel refuses has a number, too: it is lost, with its errno."""
        self._settle()
        if count == 1 and len(self._links) >= _UNDER_WAY:
            return
        for number in range(self.sent, self.sent + count):
            self._begin(number)
        self.sent += count

    def _begin(self, number: int) -> None:
        self._way.under_way[number] = time.monotonic_ns()
        try:
            sock = self._take()
        except OSError as refusal:
            # Its address is gone, maybe for a moment.
            self._way.errors[number] = errno.errorcode.get(refusal.errno or 0, str(refusal))
            return
        link = Link(number, sock, self._way.under_way[number], self.payloads.of(number))
        self._links[number] = link
        disconnect(sock)
        error = sock.connect_ex((self.flow.target_ip, self.flow.port))
        if error not in (0, errno.EINPROGRESS):
            self._fail(link, errno.errorcode.get(error, str(error)), watched=False)
            return
        self._poller.watch_socket(sock, partial(self._source_ready, link), READ_OR_WRITE)
        # The handshake is often over before connect() returns.
        self._push(link)

    def _take(self) -> socket.socket:
        """Return a socket whose last connection both ends have closed; OSError if one more cannot be bound.

        One that is still being closed would be reset, and its port be free at once, while the other end still sends.
        """
        for _ in range(len(self._spare)):
            sock = self._spare.popleft()
            if is_closed(sock):
                return sock
            self._spare.append(sock)
        return self._spare.popleft() if len(self._spare) > _UNDER_WAY else self._socket(time.monotonic())

    def _push(self, link: Link) -> None:
        try:
            taken = link.source.send(link.unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(link, errno.errorcode.get(error.errno or 0, str(error)))
            return
        self._bytes_sent += taken
        link.unsent = link.unsent[taken:]
        if not link.unsent:
            self._poller.rewatch(link.source, READ)

    def _source_ready(self, link: Link) -> None:
        if link.unsent:
            # The handshake is over: the buffer takes a record at once.
            link.established()
            self._push(link)
            return
        try:
            data = link.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(link, errno.errorcode.get(error.errno or 0, str(error)))
            return
        if not data:
            self._fail(link, "EOF")
            return
        link.data += data
        self._bytes_received += len(data)
        record = self.payloads.of(link.number)
        if len(link.data) >= len(record):
            self._answered(link, link.data == record)

    def _answered(self, link: Link, equal: bool) -> None:
        now = time.monotonic_ns()
        del self._links[link.number], self._way.under_way[link.number]
        self._poller.forget(link.source.fileno())
        self.received += 1
        if not equal:
            self._events.append(Event("corrupted", link.sent_ns))
        self._delays.round_trip(link.sent_ns, self._delays.packet(link.sent_ns, now))
        self._settling.append((link, now))
        self._settle()

    def _fail(self, link: Link, error: str, *, watched: bool = True) -> None:
        """Leave a connection unanswered: it stays under way, and is lost."""
        del self._links[link.number]
        self._way.errors[link.number] = error
        if watched:
            self._poller.forget(link.source.fileno())
        link.close()
        link.source.close()

    def _settle(self, *, final: bool = False) -> None:
        """Close the connections that were answered and of which every segment has arrived, or had time enough to."""
        for _ in range(len(self._settling)):
            link, answered_ns = self._settling.popleft()
            settled = link.settled()
            if any(settled.missing) and not final and time.monotonic_ns() - answered_ns < _SETTLED_NS:
                self._settling.append((link, answered_ns))
                continue
            self._count(link, settled)
            link.close()
            self._spare.append(link.source)

    def _count(self, link: Link, settled: Settled) -> None:
        directions: tuple[Direction, Direction] = ("request", "reply")
        for direction, count in zip(directions, settled.missing, strict=True):
            self._segments += [LostPacket(link.number, link.sent_ns, direction)] * count
            self._events += [Event("duplicate", link.sent_ns)] * -count
        self._events += [Event("retransmit", link.sent_ns)] * (settled.retransmits - settled.spurious)
        self._retransmits += settled.retransmits
        self._spurious += settled.spurious

    def link(self, number: int) -> Link | None:
        """Return the connection with this record, if it waits for its echo."""
        return self._links.get(number)

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the connections [first, end) are not done yet."""
        return sum(1 for number in range(first, end) if number in self._links)

    def arrivals(self, first: int, end: int) -> int:
        """Return how many of the connections [first, end) had their echo."""
        return sum(1 for number in range(first, end) if number not in self._way.under_way)

    def idle(self, since_ns: int) -> bool:
        """Tell whether every connection that was begun after `since_ns` is done, and its last segments have arrived."""
        self._settle()
        answered = (at < since_ns for _, at in self._settling)
        return all(link.sent_ns < since_ns for link in self._links.values()) and all(answered)

    def report(self, *, late_after_ns: int, final: bool) -> FlowReport:
        """Return the account so far; what is under way counts as lost if `final`."""
        self._settle(final=final)
        return FlowReport(
            name=self.flow.name,
            protocol="tcp",
            sent=self.sent,
            delivered=self.received,
            received=self.received,
            in_flight=0 if final else len(self._links),
            lost=(*self._way.lost(), *self._segments) if final else (),
            events=(*self._events, *self._delays.late(late_after_ns)),
            delays=self._delays.report(),
            connections=Connections(
                opened=self.received,
                bytes_sent=self._bytes_sent,
                bytes_received=self._bytes_received,
                retransmits=self._retransmits,
                spurious=self._spurious,
            ),
        )

    def close(self) -> None:
        for link in (*self._links.values(), *(link for link, _ in self._settling)):
            link.close()
            link.source.close()
        for sock in self._spare:
            sock.close()


class Acceptor:
    """The target of one or more such flows."""

    def __init__(
        self, listener: socket.socket, token: int, streams: Mapping[int, TcpConnections], poller: Poller
    ) -> None:
        self._listener = listener
        self._token = token
        self._streams = streams
        self._poller = poller
        self._open: dict[int, socket.socket] = {}
        listener.setblocking(False)
        poller.watch_socket(listener, self._readable)

    def _readable(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._open[sock.fileno()] = sock
        self._poller.watch_socket(sock, partial(self._read, sock, bytearray()))
        # The record often came with the handshake's last segment.
        self._poller.handle([sock.fileno()])

    def _read(self, sock: socket.socket, data: bytearray) -> None:
        """Take a piece of the record; send it back when it is complete."""
        try:
            chunk = sock.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        data += chunk
        stream, number = self._stream(data)
        link = stream.link(number) if stream is not None else None
        if not chunk or (link is None and len(data) >= HEADER.size):
            # The source has given up, or is none of ours.
            self._let_go(sock).close()
        elif stream is not None and link is not None and len(data) >= len(stream.payloads.of(number)):
            link.accepted(self._let_go(sock))
            # As it takes a record at once: this waits for nobody.
            sock.sendall(data)

    def _stream(self, data: bytearray) -> tuple[TcpConnections | None, int]:
        token, index, number = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0)
        return (self._streams.get(index) if token == self._token else None), number

    def _let_go(self, sock: socket.socket) -> socket.socket:
        self._poller.forget(sock.fileno())
        return self._open.pop(sock.fileno())

    def close(self) -> None:
        for sock in self._open.values():
            sock.close()
        self._listener.close()
