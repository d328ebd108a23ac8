"""Numbered ICMP echo requests: the target's kernel answers them, so a packet and its answer have one fate."""

from __future__ import annotations

import errno
import socket
import time
from array import array
from contextlib import ExitStack

from lab.system.sockets import ARRIVAL_SPACE, Address, arrival, bound_socket, drops, report_arrival
from lab.traffic import icmp
from lab.traffic.account import Way
from lab.traffic.delays import DelayRecorder
from lab.traffic.flows import Flow
from lab.traffic.payload import WARM_UP, Payloads
from lab.traffic.poller import Poller
from lab.traffic.report import Event, FlowReport
from lab.traffic.sources import NewConnections

_LARGEST = 65536


class EchoStream:
    """The source of a flow; each echo id is a connection of its own."""

    def __init__(self, index: int, flow: Flow, payloads: Payloads, delays: DelayRecorder) -> None:
        self.flow = flow
        self.sent = 0
        self.received = 0
        self.calm_ns: list[int] = []
        self._way = Way("exchange")
        self._payloads = payloads
        self._delays = delays
        self._new = NewConnections(flow)
        self._ident = index * 1009 & 0xFFFF
        self._times = array("q")
        self._events: list[Event] = []
        self._strays = 0
        self._warm_up_ns = 0
        self._opened = ExitStack()
        self._socket: socket.socket

    def open(self, poller: Poller, deadline: float) -> None:
        """Open the socket, and have answers read when they come; OSError if the kernel refuses."""
        flow = self.flow
        kind = socket.IPPROTO_ICMP if flow.version == 4 else socket.IPPROTO_ICMPV6
        source = Address(flow.source_ns, flow.source_ip, 0)
        self._socket = self._opened.enter_context(bound_socket(source, socket.SOCK_RAW, deadline, kind))
        self._socket.setblocking(False)
        icmp.only_replies(self._socket)
        report_arrival(self._socket)
        self._socket.connect((flow.target_ip, 0))
        poller.watch_socket(self._socket, self._readable)

    def send(self, count: int = 1) -> None:
        """Send the next requests. One that the kernel refuses has a number, too: it is lost, with its errno."""
        for number in range(self.sent, self.sent + count):
            if self._new.take():
                self._ident = (self._ident + 1) & 0xFFFF
            now = time.monotonic_ns()
            self._times.append(now)
            error = self._send(number)
            if error:
                self._way.errors[number] = error
            elif self.flow.denied:
                continue
            self._way.under_way[number] = now
        self.sent += count

    def warm_up(self) -> None:
        """Send a request that is not counted; its answer is a sample of `calm_ns`."""
        self._warm_up_ns = time.monotonic_ns()
        self._send(WARM_UP)

    def _send(self, number: int) -> str:
        packet = icmp.echo_request(self.flow.version, self._ident, number & 0xFFFF, self._payloads.of(number))
        try:
            self._socket.send(packet)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))
        return ""

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, ARRIVAL_SPACE)
        except BlockingIOError:
            return
        except OSError:
            # A pending ICMP error; reading it has cleared it.
            if self._times:
                self._events.append(Event("icmp-error", self._times[-1]))
            return
        now = time.monotonic_ns()
        payload = icmp.message(self._socket.family, data)[icmp.ECHO.size :]
        number = self._payloads.number(payload)
        hops, waited = arrival(ancillary)
        if number == WARM_UP:
            self.calm_ns.append(now - self._warm_up_ns - waited)
        elif number is None or number >= self.sent:
            self._strays += 1
        elif self.flow.denied:
            self._events.append(Event("leaked", self._times[number]))
        elif (sent_ns := self._way.arrived(number, hops)) is None:
            self._events.append(Event("duplicate", self._times[number]))
        else:
            self.received += 1
            if payload != self._payloads.of(number):
                self._events.append(Event("corrupted", sent_ns))
            self._delays.round_trip(sent_ns, self._delays.packet(sent_ns, now, waited))

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the requests [first, end) are not answered yet; of a denied flow none will be."""
        return sum(1 for number in range(first, end) if number in self._way.under_way)

    def arrivals(self, first: int, end: int) -> int:
        """Return how many of the requests [first, end) were answered."""
        if self.flow.denied:
            times = set(self._times[first:end])
            return sum(1 for event in self._events if event.kind == "leaked" and event.at_ns in times)
        return end - first - self.unanswered(first, end)

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has been answered."""
        return self._way.idle(since_ns)

    def report(self, *, late_after_ns: int, final: bool) -> FlowReport:
        """Return the account so far; what is under way counts as lost if `final`."""
        dropped = [Event("socket-drop", time.monotonic_ns())] * drops(self._socket)
        return FlowReport(
            name=self.flow.name,
            protocol="icmp",
            sent=self.sent,
            delivered=self.received,
            received=self.received,
            in_flight=0 if final or self.flow.denied else self.sent - self.received,
            lost=tuple(self._way.lost()) if final else (),
            events=(*self._events, *self._way.events, *self._delays.late(late_after_ns), *dropped),
            delays=self._delays.report(),
            denied=self.flow.denied,
            strays=self._strays,
        )

    def close(self) -> None:
        self._opened.close()
