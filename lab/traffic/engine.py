"""The traffic engine (`python -m lab.traffic.engine`): one thread in a process of its own, woken by timer and sockets.

A packet is sent, reflected and taken back by the same thread, so the account needs no locks and is exact. With one
packet a tick this costs three wake-ups a packet; the time between packets is the resolution with which a gap in the
path is seen, which is why they are spread evenly and not sent in bulk.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from datapath.kernel.netns import NamespaceNotFound
from lab.system.companion import Control
from lab.system.sockets import Address, periodic_timer
from lab.traffic.flows import Flow, TrafficError, TrafficReport
from lab.traffic.tcp import TcpStream, listen
from lab.traffic.udp import Reflector, UdpStream

SHORTEST_TICK_NS = 1_000_000
"""Waking up more often than this costs more than it shows: higher rates send several packets a tick."""

NICENESS = -10
"""The probe must run while all cores verify programs, or it does not see the gaps that it is there to see."""

Stream = UdpStream | TcpStream


@dataclass(frozen=True, slots=True)
class Settings:
    """The engine's half of lab.traffic.Traffic's options; times in seconds."""

    rate: float
    size: int
    stall_after: float
    start_timeout: float
    warm_up: bool
    token: int


@dataclass(slots=True)
class _Burst:
    """Packets sent on request, as (stream, first number, end), waited for until `deadline_ns`."""

    parts: list[tuple[Stream, int, int]]
    deadline_ns: int

    def waiting(self) -> dict[str, int]:
        """Return by flow how many packets are not answered yet."""
        return {stream.flow.name: stream.unanswered(first, end) for stream, first, end in self.parts}


class Engine:
    """Streams, reflectors, the timer, and the loop that serves them."""

    def __init__(self, control: Control, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._stack = ExitStack()
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._sockets: set[int] = set()
        self._streams: list[Stream] = []
        self._reflectors: dict[Address, Reflector] = {}
        self._next = 0
        self._per_tick = 1
        self._timer = -1
        self._burst: _Burst | None = None
        self._drain_ns: int | None = None
        self._started_ns = 0
        self._last_tick_ns = 0
        self._longest_pause_ns = 0

    def open(self, flows: list[Flow]) -> None:
        """Open every socket, connect every connection, wait for every UDP path to answer once, or TrafficError."""
        deadline = time.monotonic() + self._settings.start_timeout
        listeners: dict[Address, socket.socket] = {}
        udp: dict[int, UdpStream] = {}
        with ExitStack() as opening:
            for index, flow in enumerate(flows):
                target = Address(flow.target_ns, flow.target_ip, flow.port)
                try:
                    if flow.protocol == "tcp":
                        if target not in listeners:
                            listeners[target] = opening.enter_context(listen(target, deadline))
                        self._open_tcp(index, flow, listeners[target], deadline)
                    else:
                        self._open_udp(index, flow, target, udp, deadline)
                except (OSError, NamespaceNotFound) as error:
                    number = error.errno if isinstance(error, OSError) else None
                    reason = os.strerror(number) if number else str(error)
                    raise TrafficError(f"flow {flow.name}: {reason}") from error
        if self._settings.warm_up:
            self._warm_up(list(udp.values()), deadline)

    def _open_tcp(self, index: int, flow: Flow, listener: socket.socket, deadline: float) -> None:
        settings = self._settings
        stream = TcpStream(index, flow, settings.token, settings.size, round(settings.stall_after * 1e9))
        self._stack.callback(stream.close)
        stream.open(listener, deadline)
        self._streams.append(stream)
        self._watch_socket(stream.source, stream.source_readable)
        self._watch_socket(stream.target, stream.target_readable)

    def _open_udp(self, index: int, flow: Flow, target: Address, udp: dict[int, UdpStream], deadline: float) -> None:
        if target not in self._reflectors:
            reflector = Reflector(target, self._settings.token, udp, deadline)
            self._stack.callback(reflector.close)
            self._reflectors[target] = reflector
            self._watch_socket(reflector.socket, reflector.readable)
        stream = UdpStream(index, flow, self._settings.token, self._settings.size, deadline)
        self._stack.callback(stream.close)
        udp[index] = stream
        self._streams.append(stream)
        self._watch_socket(stream.socket, stream.readable)

    def _warm_up(self, streams: list[UdpStream], deadline: float) -> None:
        cold = streams
        while cold:
            if time.monotonic() > deadline:
                raise TrafficError(f"flow {cold[0].flow.name}: {cold[0].flow.target_ip} does not answer")
            for stream in cold:
                stream.warm_up()
            again = time.monotonic() + 0.2
            while cold and time.monotonic() < again:
                self._serve(0.05)
                cold = [stream for stream in cold if not stream.warm]
        for stream in streams:
            # The neighbour that was not resolved at first may have been announced unreachable by ICMP.
            stream.icmp_errors = 0

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.EPOLLIN)

    def _watch_socket(self, sock: socket.socket, handler: Callable[[], None]) -> None:
        self._sockets.add(sock.fileno())
        self._watch(sock.fileno(), handler)

    def _read_all(self) -> None:
        """Read all sockets until they are empty: what lies unread in one of them is not lost.

        It ends because nothing is sent meanwhile but the answers to what is read.
        """
        while ready := self._sockets.intersection(descriptor for descriptor, _ in self._poll.poll(0)):
            for descriptor in ready:
                self._handlers[descriptor]()

    def _serve(self, timeout: float) -> None:
        handlers = self._handlers
        for descriptor, _ in self._poll.poll(timeout):
            # A stop in this same round has closed the timer that was due as well.
            if descriptor in handlers:
                handlers[descriptor]()

    def run(self) -> None:
        """Serve until the parent says stop, or is gone."""
        messages, parent = self._control.descriptors
        self._watch(messages, self._command)
        self._watch(parent, self._leave)
        if self._settings.rate > 0 and self._streams:
            interval = 1e9 / self._settings.rate
            self._per_tick = max(1, round(SHORTEST_TICK_NS / interval))
            self._timer = periodic_timer(round(interval * self._per_tick))
            self._watch(self._timer, self._tick)
        self._started_ns = self._last_tick_ns = time.monotonic_ns()
        while True:
            self._serve(-1 if self._burst is None and self._drain_ns is None else 0.01)
            if self._burst is not None:
                self._check_burst(self._burst)
            if self._drain_ns is not None and self._drained(self._drain_ns):
                return

    def _tick(self) -> None:
        # Rounds that were missed are not made up for: what they would have seen is over.
        os.read(self._timer, 8)
        now = time.monotonic_ns()
        self._longest_pause_ns = max(self._longest_pause_ns, now - self._last_tick_ns)
        self._last_tick_ns = now
        streams = self._streams
        for _ in range(self._per_tick):
            streams[self._next].send()
            self._next = (self._next + 1) % len(streams)

    def _command(self) -> None:
        message = self._control.receive()
        match message:
            case None:
                self._leave()
            case {"do": "snapshot"}:
                self._control.send(self._report(final=False).to_json())
            case {"do": "burst", "flows": names, "count": count, "timeout": timeout}:
                parts: list[tuple[Stream, int, int]] = []
                for stream in self._streams:
                    if stream.flow.name in names:
                        first = stream.sent
                        stream.send(count)
                        parts.append((stream, first, stream.sent))
                self._burst = _Burst(parts, time.monotonic_ns() + round(timeout * 1e9))
            case {"do": "stop", "drain": drain}:
                self._stop(drain)
            case other:
                raise ValueError(f"unknown command {other}")

    def _check_burst(self, burst: _Burst) -> None:
        waiting = burst.waiting()
        if any(waiting.values()):
            if time.monotonic_ns() < burst.deadline_ns:
                return
            # Whoever was kept from reading for a while finds the answers now.
            self._read_all()
            waiting = burst.waiting()
        self._burst = None
        answer = {
            stream.flow.name: [end - first, end - first - waiting[stream.flow.name]]
            for stream, first, end in burst.parts
        }
        self._control.send({"bursts": answer})

    def _stop(self, drain: float) -> None:
        if self._timer >= 0:
            self._poll.unregister(self._timer)
            del self._handlers[self._timer]
            os.close(self._timer)
            self._timer = -1
        self._drain_ns = round(drain * 1e9)

    def _drained(self, drain_ns: int) -> bool:
        # What was lost long ago is not waited for; what was sent just now is, as long as `drain_ns`.
        since = time.monotonic_ns() - drain_ns
        if not self._idle(since):
            return False
        # An engine that did not run for a while has old packets unread in its sockets, and their answers still to send.
        self._read_all()
        if not self._idle(since):
            return False
        self._control.send(self._report(final=True).to_json())
        return True

    def _idle(self, since_ns: int) -> bool:
        return all(stream.idle(since_ns) for stream in self._streams)

    def _report(self, *, final: bool) -> TrafficReport:
        udp = [stream for stream in self._streams if isinstance(stream, UdpStream)]
        return TrafficReport(
            started_ns=self._started_ns,
            stopped_ns=time.monotonic_ns(),
            longest_pause_ns=self._longest_pause_ns,
            cpu_ns=time.process_time_ns(),
            udp=tuple(
                stream.report(socket_drops=self._reflectors[self._target(stream.flow)].drops, final=final)
                for stream in udp
            ),
            tcp=tuple(stream.report() for stream in self._streams if isinstance(stream, TcpStream)),
        )

    @staticmethod
    def _target(flow: Flow) -> Address:
        return Address(flow.target_ns, flow.target_ip, flow.port)

    def _leave(self) -> None:
        raise ParentGone

    def close(self) -> None:
        """Close everything that open() and run() opened."""
        self._stack.close()
        self._poll.close()


class ParentGone(Exception):
    """The parent has died or closed its end: nobody is there to report to."""


def main(descriptor: int) -> int:
    """Run the engine on the control socket `descriptor`: the first message says what to do."""
    control = Control(descriptor)
    message: dict[str, Any] | None = control.receive()
    if message is None:
        return 1
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    engine = Engine(control, Settings(**message["settings"]))
    try:
        engine.open([Flow(**flow) for flow in message["flows"]])
    except TrafficError as error:
        control.send({"error": str(error)})
        engine.close()
        return 1
    try:
        control.send({"ready": True})
        engine.run()
    except (ParentGone, BrokenPipeError):
        return 1
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
