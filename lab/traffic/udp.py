"""Numbered UDP packets, asked and answered within one process: both ends are seen, so every packet has one fate."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Mapping

from lab.system.sockets import Address, bound_socket, drops, hop_limit, report_hop_limit
from lab.traffic.flows import Flow, LostPacket, RequestOrReply, UdpReport

HEADER = struct.Struct("!QIQ")
"""The token of this run, the flow's index, the packet's number."""

WARM_UP = (1 << 64) - 1
"""The number of packets that only make the path ready (neighbours resolved); they are not counted."""

_LARGEST = 65536
_ANCILLARY = socket.CMSG_SPACE(4)


class _Way:
    """One direction of a stream: what is under way, and what came of the rest."""

    __slots__ = ("detours", "duplicates", "errors", "first_hop_limit", "highest", "name", "reordered", "under_way")

    def __init__(self, name: RequestOrReply) -> None:
        self.name = name
        self.under_way: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        self.highest = -1
        self.first_hop_limit = -1
        self.duplicates = 0
        self.reordered = 0
        self.detours = 0

    def arrived(self, number: int, hops: int) -> bool:
        """Account for a packet; False if it is not the first of its number."""
        if self.under_way.pop(number, None) is None:
            self.duplicates += 1
            return False
        if number < self.highest:
            self.reordered += 1
        else:
            self.highest = number
        if hops != self.first_hop_limit:
            if self.first_hop_limit < 0:
                self.first_hop_limit = hops
            else:
                self.detours += 1
        return True

    def lost(self) -> list[LostPacket]:
        return [LostPacket(n, at, self.name, self.errors.get(n, "")) for n, at in self.under_way.items()]


class UdpStream:
    """The source of a flow."""

    def __init__(self, index: int, flow: Flow, token: int, size: int, deadline: float) -> None:
        self.flow = flow
        self.index = index
        self.sent = 0
        self.received = 0
        self.warm = False
        self.requests = _Way("request")
        self.replies = _Way("reply")
        self.icmp_errors = 0
        self.strays = 0
        self.broken = False
        self._token = token
        self._padding = bytes(max(size - HEADER.size, 0))
        self.socket = bound_socket(Address(flow.source_ns, flow.source_ip, 0), socket.SOCK_DGRAM, deadline)
        try:
            self.socket.setblocking(False)
            report_hop_limit(self.socket)
            self.socket.connect((flow.target_ip, flow.port))
        except OSError:
            self.socket.close()
            raise

    def send(self, count: int = 1) -> None:
        """Send the next packets. One that the kernel refuses has a number, too: it is lost, with its errno."""
        for number in range(self.sent, self.sent + count):
            self.requests.under_way[number] = time.monotonic_ns()
            error = self._send(HEADER.pack(self._token, self.index, number) + self._padding)
            if error:
                self.requests.errors[number] = error
        self.sent += count

    def warm_up(self) -> None:
        self._send(HEADER.pack(self._token, self.index, WARM_UP) + self._padding)

    def _send(self, packet: bytes) -> str:
        for _ in range(3):
            try:
                self.socket.send(packet)
            except ConnectionRefusedError:
                # The answer to an earlier packet, handed out in place of sending this one: send again.
                self.icmp_errors += 1
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, str(error))
            else:
                return ""
        return "ECONNREFUSED"

    def readable(self) -> None:
        """Take one reply."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(_LARGEST, _ANCILLARY)
        except BlockingIOError:
            return
        except OSError:
            # A pending ICMP error; reading it has cleared it.
            self.icmp_errors += 1
            return
        token, index, number = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0)
        if token != self._token or index != self.index:
            self.strays += 1
        elif number == WARM_UP:
            self.warm = True
        elif self.replies.arrived(number, hop_limit(ancillary)):
            self.received += 1

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the packets [first, end) have not come back yet."""
        waiting = (self.requests.under_way, self.replies.under_way)
        return sum(1 for number in range(first, end) if number in waiting[0] or number in waiting[1])

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has arrived."""
        return all(at < since_ns for way in (self.requests, self.replies) for at in way.under_way.values())

    def report(self, *, socket_drops: int, final: bool) -> UdpReport:
        """Return the account so far; what is under way counts as lost if `final`."""
        ways = (self.requests, self.replies)
        lost = sorted((p for way in ways for p in way.lost()), key=lambda packet: packet.number) if final else []
        return UdpReport(
            name=self.flow.name,
            sent=self.sent,
            delivered=self.sent - len(self.requests.under_way),
            received=self.received,
            in_flight=0 if final else self.sent - self.received,
            lost=tuple(lost),
            duplicates=sum(way.duplicates for way in ways),
            reordered=sum(way.reordered for way in ways),
            detours=sum(way.detours for way in ways),
            icmp_errors=self.icmp_errors,
            socket_drops=socket_drops + drops(self.socket),
            strays=self.strays,
        )

    def close(self) -> None:
        self.socket.close()


class Reflector:
    """The target of one or more flows: answers each packet once, from where it came, with the same bytes."""

    def __init__(self, address: Address, token: int, streams: Mapping[int, UdpStream], deadline: float) -> None:
        self._token = token
        self._streams = streams
        self.strays = 0
        self.socket = bound_socket(address, socket.SOCK_DGRAM, deadline)
        self.socket.setblocking(False)
        report_hop_limit(self.socket)

    def readable(self) -> None:
        """Take one request and answer it. A duplicate is not answered, or it would count in both directions."""
        try:
            data, ancillary, _, source = self.socket.recvmsg(_LARGEST, _ANCILLARY)
        except BlockingIOError:
            return
        token, index, number = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0)
        stream = self._streams.get(index) if token == self._token else None
        if stream is None:
            self.strays += 1
            return
        if number != WARM_UP:
            if not stream.requests.arrived(number, hop_limit(ancillary)):
                return
            stream.replies.under_way[number] = time.monotonic_ns()
        try:
            self.socket.sendto(data, source)
        except OSError as error:
            stream.replies.errors[number] = errno.errorcode.get(error.errno or 0, str(error))

    @property
    def drops(self) -> int:
        return drops(self.socket)

    def close(self) -> None:
        self.socket.close()
