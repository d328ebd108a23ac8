"""Numbered UDP packets, asked and answered within one process: both ends are seen, so every packet has one fate."""

from __future__ import annotations

import errno
import socket
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from lab.system.sockets import (
    ARRIVAL_SPACE,
    Address,
    arrival,
    bound_socket,
    drops,
    queue_errors,
    refused_payload,
    report_arrival,
)
from lab.traffic.account import Way
from lab.traffic.delays import DelayRecorder
from lab.traffic.flows import Flow
from lab.traffic.payload import HEADER, WARM_UP, Payloads
from lab.traffic.poller import Poller
from lab.traffic.report import Event, FlowReport
from lab.traffic.sources import Source, Sources

_LARGEST = 65536


class UdpStream:
    """The source of a flow."""

    def __init__(self, flow: Flow, payloads: Payloads, delays: DelayRecorder) -> None:
        self.flow = flow
        self.sent = 0
        self.received = 0
        self.calm_ns: list[int] = []
        self.requests = Way("request")
        self.replies = Way("reply")
        self.delays = delays
        self._strays = 0
        self._events: list[Event] = []
        self._payloads = payloads
        self._times = array("q")
        self._took: dict[int, int] = {}
        self._warm_up_ns = 0
        self._sources = Sources(flow)

    def open(self, poller: Poller, deadline: float) -> None:
        """Open the sockets, and have answers read when they come; OSError if the kernel refuses."""
        self._sources.open(deadline)
        read = self._read_refusals if self.flow.refused else self._read_reply
        for source in self._sources.all:
            (queue_errors if self.flow.refused else report_arrival)(source.socket)
            poller.watch_socket(source.socket, partial(read, source))

    def send(self, count: int = 1) -> None:
        """Send the next packets. One that the kernel refuses has a number, too: it is lost, with its errno."""
        for number in range(self.sent, self.sent + count):
            source = self._sources.take(number)
            now = time.monotonic_ns()
            self._times.append(now)
            error = self._send(source, self._payloads.of(number))
            if error:
                self.requests.errors[number] = error
            elif self.flow.denied:
                continue
            else:
                source.waiting += 1
            self.requests.under_way[number] = now
        self.sent += count

    def warm_up(self) -> None:
        """Send a packet that is not counted; its answer is a sample of `calm_ns`."""
        self._warm_up_ns = time.monotonic_ns()
        self._send(self._sources.all[0], self._payloads.of(WARM_UP))

    def _send(self, source: Source, packet: bytes) -> str:
        for _ in range(3):
            try:
                source.send(packet)
            except ConnectionRefusedError:
                # The answer to an earlier packet, handed out in place of sending this one: send again.
                self._refused()
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, str(error))
            else:
                return ""
        return "ECONNREFUSED"

    def _refused(self) -> None:
        # The neighbour that was not resolved at first may have been announced unreachable.
        if self._times and not self.flow.refused:
            self._events.append(Event("icmp-error", self._times[-1]))

    def _read_reply(self, source: Source) -> None:
        try:
            data, ancillary, _, _ = source.socket.recvmsg(_LARGEST, ARRIVAL_SPACE)
        except BlockingIOError:
            return
        except OSError:
            # A pending ICMP error; reading it has cleared it.
            self._refused()
            return
        now = time.monotonic_ns()
        number = self._payloads.number(data)
        hops, waited = arrival(ancillary)
        if number == WARM_UP:
            self.calm_ns.append(now - self._warm_up_ns - waited)
        elif number is None or number >= self.sent:
            self._strays += 1
        elif (sent_ns := self.replies.arrived(number, hops)) is None:
            self._events.append(Event("duplicate", self._times[number]))
        else:
            source.waiting -= 1
            self.received += 1
            self._check(data, number)
            took = self.delays.packet(sent_ns, now, waited)
            self.delays.round_trip(self._times[number], took + self._took.pop(number))

    def _read_refusals(self, source: Source) -> None:
        # Whoever answers instead does not refuse; unread, it would wake the engine for ever. An error that is pending,
        # whichever, is told by the error queue as well.
        with suppress(OSError):
            source.socket.recv(_LARGEST)
            self._strays += 1
        while (refusal := refused_payload(source.socket)) is not None:
            now = time.monotonic_ns()
            data, error = refusal
            number = self._payloads.number(data)
            sent_ns = self.requests.under_way.pop(number, None) if number is not None else None
            if number is None or sent_ns is None:
                self._strays += 1
                continue
            source.waiting -= 1
            self.received += 1
            self.delays.round_trip(sent_ns, self.delays.packet(sent_ns, now))
            if error != "ECONNREFUSED":
                self._events.append(Event("icmp-error", sent_ns, f"{error} instead of ECONNREFUSED"))

    def request_arrived(self, data: bytes, number: int, ancillary: list[tuple[int, int, bytes]]) -> bool:
        """Account for a request at its target; tell whether it is to be answered. A duplicate is not."""
        if self.flow.denied:
            self._events.append(Event("leaked", self._times[number]))
        if self.flow.denied or self.flow.refused:
            return False
        now = time.monotonic_ns()
        hops, waited = arrival(ancillary)
        sent_ns = self.requests.arrived(number, hops)
        if sent_ns is None:
            self._events.append(Event("duplicate", self._times[number]))
            return False
        self._check(data, number)
        self._took[number] = self.delays.packet(sent_ns, now, waited)
        self.replies.under_way[number] = time.monotonic_ns()
        return True

    def _check(self, data: bytes, number: int) -> None:
        if data != self._payloads.of(number):
            self._events.append(Event("corrupted", self._times[number]))

    def unanswered(self, first: int, end: int) -> int:
        """Return how many of the packets [first, end) have not come back yet; of a denied flow none will."""
        waiting = (self.requests.under_way, self.replies.under_way)
        return sum(1 for number in range(first, end) if number in waiting[0] or number in waiting[1])

    def arrivals(self, first: int, end: int) -> int:
        """Return how many of the packets [first, end) were answered; of a denied flow, how many arrived."""
        if self.flow.denied:
            times = set(self._times[first:end])
            return sum(1 for event in self._events if event.kind == "leaked" and event.at_ns in times)
        return end - first - self.unanswered(first, end)

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has arrived."""
        return self.requests.idle(since_ns) and self.replies.idle(since_ns)

    def report(self, *, late_after_ns: int, socket_drops: int, final: bool) -> FlowReport:
        """Return the account so far; what is under way counts as lost if `final`."""
        ways = (self.requests, self.replies)
        lost = sorted((p for way in ways for p in way.lost()), key=lambda packet: packet.number) if final else []
        socket_drops += sum(drops(source.socket) for source in self._sources.all)
        dropped = [Event("socket-drop", time.monotonic_ns())] * socket_drops
        events = [*self._events, *(event for way in ways for event in way.events), *self.delays.late(late_after_ns)]
        return FlowReport(
            name=self.flow.name,
            protocol="udp",
            sent=self.sent,
            delivered=self.arrivals(0, self.sent) if self.flow.denied else self.sent - len(self.requests.under_way),
            received=self.received,
            in_flight=0 if final or self.flow.denied else self.sent - self.received,
            lost=tuple(lost),
            events=(*events, *dropped),
            delays=self.delays.report(),
            denied=self.flow.denied,
            strays=self._strays,
        )

    def close(self) -> None:
        self._sources.close()


class Reflector:
    """The target of one or more flows: answers each packet once, from where it came, with the same bytes."""

    def __init__(self, address: Address, token: int, streams: Mapping[int, UdpStream], deadline: float) -> None:
        self._token = token
        self._streams = streams
        self.strays = 0
        self.socket = bound_socket(address, socket.SOCK_DGRAM, deadline)
        self.socket.setblocking(False)
        report_arrival(self.socket)

    def readable(self) -> None:
        """Take one request and answer it. A duplicate is not answered, or it would count in both directions."""
        try:
            data, ancillary, _, source = self.socket.recvmsg(_LARGEST, ARRIVAL_SPACE)
        except BlockingIOError:
            return
        token, index, number = HEADER.unpack_from(data) if len(data) >= HEADER.size else (0, 0, 0)
        stream = self._streams.get(index) if token == self._token else None
        if stream is None or (number != WARM_UP and number >= stream.sent):
            self.strays += 1
            return
        if number != WARM_UP and not stream.request_arrived(data, number, ancillary):
            return
        try:
            self.socket.sendto(data, source)
        except OSError as error:
            stream.replies.errors[number] = errno.errorcode.get(error.errno or 0, str(error))

    @property
    def drops(self) -> int:
        return drops(self.socket)

    def close(self) -> None:
        self.socket.close()
