"""All flows of an engine, opened: their sources, and the targets that several of them share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from datapath.kernel.netns import NamespaceNotFound
from lab.system.sockets import Address
from lab.traffic.connections import Acceptor, TcpConnections
from lab.traffic.delays import DelayRecorder, Pauses
from lab.traffic.echo import EchoStream
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.payload import Payloads
from lab.traffic.poller import Poller
from lab.traffic.report import FlowReport
from lab.traffic.tcp import TcpStream, listen
from lab.traffic.udp import Reflector, UdpStream

Stream = UdpStream | EchoStream | TcpStream | TcpConnections


@dataclass(frozen=True, slots=True)
class Settings:
    """The engine's half of lab.traffic.Traffic's options; times in seconds."""

    rate: float
    size: int
    stall_after: float
    late_after: float
    forget_every: float
    start_timeout: float
    warm_up: bool
    muted: Sequence[str]
    token: int


class Streams:
    """The streams in the order of their flows, and what listens for them; close() closes every socket."""

    def __init__(self, settings: Settings, pauses: Pauses, poller: Poller) -> None:
        self.all: list[Stream] = []
        self._settings = settings
        self._pauses = pauses
        self._poller = poller
        self._stack = ExitStack()
        self._udp: dict[int, UdpStream] = {}
        self._connections: dict[int, TcpConnections] = {}
        self._reflectors: dict[Address, Reflector] = {}
        self._listeners: dict[Address, socket.socket] = {}

    def open(self, flows: list[Flow], deadline: float) -> None:
        """Open every socket and connect every connection; TrafficError if one cannot be (time.monotonic)."""
        for index, flow in enumerate(flows):
            with _naming(flow):
                self._listen(flow, deadline)
                stream = self._stream(index, flow)
                self._stack.callback(stream.close)
                stream.open(self._poller, deadline)
            self.all.append(stream)
        # Not before the others are open: until then each accepts its own connection.
        for target in {_target(stream.flow) for stream in self._connections.values()}:
            acceptor = Acceptor(self._listeners[target], self._settings.token, self._connections, self._poller)
            self._stack.callback(acceptor.close)

    def _listen(self, flow: Flow, deadline: float) -> None:
        """Open what listens at the target, once for all flows there."""
        target = _target(flow)
        if flow.protocol == "tcp" and target not in self._listeners:
            self._listeners[target] = listen(target, deadline)
            self._stack.callback(self._listeners[target].close)
        elif flow.protocol == "udp" and not flow.refused and target not in self._reflectors:
            reflector = Reflector(target, self._settings.token, self._udp, deadline)
            self._stack.callback(reflector.close)
            self._reflectors[target] = reflector
            self._poller.watch_socket(reflector.socket, reflector.readable)

    def _stream(self, index: int, flow: Flow) -> Stream:
        settings = self._settings
        payloads = Payloads(settings.token, index, flow.sizes or (settings.size,))
        delays = DelayRecorder(self._pauses, round(settings.late_after * 1e9))
        if flow.protocol == "icmp":
            return EchoStream(index, flow, payloads, delays)
        if flow.protocol == "udp":
            self._udp[index] = UdpStream(flow, payloads, delays)
            return self._udp[index]
        if flow.fresh:
            self._connections[index] = TcpConnections(flow, payloads, delays)
            return self._connections[index]
        listener = self._listeners[_target(flow)]
        return TcpStream(flow, payloads, delays, self._pauses, listener, round(settings.stall_after * 1e9))

    @property
    def answering(self) -> list[UdpStream | EchoStream]:
        """The streams whose path can be tried beforehand."""
        tried = (stream for stream in self.all if isinstance(stream, UdpStream | EchoStream))
        return [stream for stream in tried if not (stream.flow.denied or stream.flow.refused)]

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has arrived."""
        return all(stream.idle(since_ns) for stream in self.all)

    def report(self, late_after_ns: int, *, final: bool) -> tuple[FlowReport, ...]:
        """Return the account of every flow."""
        return tuple(self._report(stream, late_after_ns, final) for stream in self.all)

    def _report(self, stream: Stream, late_after_ns: int, final: bool) -> FlowReport:
        if not isinstance(stream, UdpStream):
            return stream.report(late_after_ns=late_after_ns, final=final)
        reflector = self._reflectors.get(_target(stream.flow))
        dropped = reflector.drops if reflector is not None else 0
        return stream.report(late_after_ns=late_after_ns, socket_drops=dropped, final=final)

    def close(self) -> None:
        self._stack.close()


def _target(flow: Flow) -> Address:
    return Address(flow.target_ns, flow.target_ip, flow.port)


@contextmanager
def _naming(flow: Flow) -> Iterator[None]:
    """Turn what opening a flow raises into an error that names the flow."""
    try:
        yield
    except (OSError, NamespaceNotFound) as error:
        number = error.errno if isinstance(error, OSError) else None
        raise TrafficError(f"flow {flow.name}: {os.strerror(number) if number else error}") from error
