"""All flows of an engine, opened: their sources, and the targets that several of them share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from datapath.kernel.netns import NamespaceNotFound
from lab.system.sockets import Address
from lab.traffic.delays import DelayRecorder, Pauses
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.payload import Payloads
from lab.traffic.report import FlowReport
from lab.traffic.sources import OnReadable
from lab.traffic.tcp import TcpStream, listen
from lab.traffic.udp import Reflector, UdpStream

Stream = UdpStream | TcpStream


@dataclass(frozen=True, slots=True)
class Settings:
    """The engine's half of lab.traffic.Traffic's options; times in seconds."""

    rate: float
    size: int
    stall_after: float
    late_after: float
    start_timeout: float
    warm_up: bool
    muted: Sequence[str]
    token: int


class Streams:
    """The streams in the order of their flows. A context manager: leaving it closes every socket."""

    def __init__(self, settings: Settings, pauses: Pauses, on_readable: OnReadable) -> None:
        self.all: list[Stream] = []
        self._settings = settings
        self._pauses = pauses
        self._on_readable = on_readable
        self._stack = ExitStack()
        self._udp: dict[int, UdpStream] = {}
        self._reflectors: dict[Address, Reflector] = {}

    def open(self, flows: list[Flow], deadline: float) -> None:
        """Open every socket and connect every connection; TrafficError if one cannot be (time.monotonic)."""
        listeners: dict[Address, socket.socket] = {}
        with ExitStack() as opening:
            for index, flow in enumerate(flows):
                target = _target(flow)
                with _naming(flow):
                    if flow.protocol == "tcp":
                        if target not in listeners:
                            listeners[target] = opening.enter_context(listen(target, deadline))
                        self._open_tcp(index, flow, listeners[target], deadline)
                    else:
                        self._open_udp(index, flow, target, deadline)

    def _open_tcp(self, index: int, flow: Flow, listener: socket.socket, deadline: float) -> None:
        stall_after_ns = round(self._settings.stall_after * 1e9)
        stream = TcpStream(flow, self._payloads(index, flow), self._delays(), self._pauses, stall_after_ns)
        self._stack.callback(stream.close)
        stream.open(listener, deadline)
        self._add(stream)

    def _open_udp(self, index: int, flow: Flow, target: Address, deadline: float) -> None:
        if target not in self._reflectors and not flow.refused:
            reflector = Reflector(target, self._settings.token, self._udp, deadline)
            self._stack.callback(reflector.close)
            self._reflectors[target] = reflector
            self._on_readable(reflector.socket, reflector.readable)
        stream = UdpStream(flow, self._payloads(index, flow), self._delays(), deadline)
        self._stack.callback(stream.close)
        self._udp[index] = stream
        self._add(stream)

    def _add(self, stream: Stream) -> None:
        self.all.append(stream)
        stream.watch(self._on_readable)

    def _payloads(self, index: int, flow: Flow) -> Payloads:
        return Payloads(self._settings.token, index, flow.sizes or (self._settings.size,))

    def _delays(self) -> DelayRecorder:
        return DelayRecorder(self._pauses, round(self._settings.late_after * 1e9))

    @property
    def answering(self) -> list[UdpStream]:
        """The streams whose path can be tried beforehand."""
        return [stream for stream in self._udp.values() if not (stream.flow.denied or stream.flow.refused)]

    def idle(self, since_ns: int) -> bool:
        """Tell whether everything that was sent after `since_ns` has arrived."""
        return all(stream.idle(since_ns) for stream in self.all)

    def report(self, late_after_ns: int, *, final: bool) -> tuple[FlowReport, ...]:
        """Return the account of every flow."""
        return tuple(self._report(stream, late_after_ns, final) for stream in self.all)

    def _report(self, stream: Stream, late_after_ns: int, final: bool) -> FlowReport:
        if isinstance(stream, TcpStream):
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
