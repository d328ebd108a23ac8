"""One exchange at a time between two addresses: what arrives, what is answered, what the sender's kernel refuses.

    probe = Probe("udp", port=53, count=3)
    result = exchange(Address(client_ns, client_ip, 40000), Address(server_ns, server_ip, 53), probe)
    assert (result.arrived, result.answered) == (3, 3)

Where `lab.traffic.traffic` keeps many flows going through a reload, this asks one question and is done in a few
milliseconds. Both ends are sockets of this process, so it is known of each packet whether it arrived.
"""

from __future__ import annotations

import errno
import math
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from datapath.errors import ReloadlabError
from lab.system.pace import slowness
from lab.system.sockets import Address, allow_fragments, bound_socket, is_closed, tcp_info
from lab.traffic import icmp

ETHERNET, IPV4, IPV6, FRAGMENT_HEADER, UDP_OR_ECHO = 14, 20, 40, 8, 8
"""Bytes of the headers."""

_TIMEOUT = 2.0
"""Seconds in which an exchange is over, on an ordinary machine (lab.system.pace)."""

DROPPED = "ENOBUFS"
"""What the kernel says of ICMPv6 that its own interface has dropped, a program at its egress for example."""

_POLL = 0.001


class ExchangeError(ReloadlabError):
    """An exchange that makes no sense, or one that hangs half-way."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is sent: `count` echo requests or datagrams of `size` bytes, or that many over one TCP connection.

    Each is answered with the same bytes. What is larger than the path's MTU goes in `fragments`, or is refused.
    """

    protocol: Literal["icmp", "udp", "tcp"]
    port: int = 0
    size: int = 64
    count: int = 2
    fragments: bool = False

    def __str__(self) -> str:
        port = f"/{self.port}" if self.port else ""
        return f"{self.protocol}{port} {self.count} x {self.size}{' in fragments' * self.fragments}"

    def frames(self, version: int, mtu: int) -> tuple[int, int]:
        """Return how many frames requests are, and their bytes with all headers; a TCP connection begins with one."""
        if self.protocol == "tcp":
            return 1, 0
        header = IPV4 if version == 4 else IPV6
        length = UDP_OR_ECHO + self.size
        if header + length <= mtu:
            return self.count, self.count * (ETHERNET + header + length)
        header += FRAGMENT_HEADER if version == 6 else 0
        number = math.ceil(length / ((mtu - header) // 8 * 8))
        return self.count * number, self.count * (number * (ETHERNET + header) + length)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a probe: `arrived` at the target, `answered` to the source, `error` that the source's kernel gave.

    `segments` are those of TCP that the source has sent, 0 for other protocols. A TCP connection arrives when it is
    accepted, and is answered when all bytes came back and both sides have closed.
    """

    arrived: int = 0
    answered: int = 0
    error: str = ""
    segments: int = 0


def exchange(
    source: Address,
    target: Address,
    probe: Probe,
    *,
    settled: Callable[[], bool] = lambda: False,
    timeout: float | None = None,
) -> Result:
    """Send a probe and wait for its answers, at most `timeout` seconds, or until `settled` says that none will come.

    Without `timeout`: two seconds, longer on a slow machine.
    The source's port, or the id of its echo requests, is the caller's choice: taken twice, connection tracking would
    know the second exchange. OSError if a socket cannot be opened.
    """
    if (probe.protocol == "icmp") != (target.port == 0):
        raise ExchangeError(f"{probe}: port {target.port} at {target.ip}")
    deadline = time.monotonic() + (_TIMEOUT * slowness() if timeout is None else timeout)
    with ExitStack() as stack:
        if probe.protocol == "tcp":
            return _tcp(stack, source, target, probe, settled, deadline)
        return _datagrams(stack, source, target, probe, settled, deadline)


def _datagrams(
    stack: ExitStack, source: Address, target: Address, probe: Probe, settled: Callable[[], bool], deadline: float
) -> Result:
    out, into = (stack.enter_context(_socket(end, probe, deadline)) for end in (source, target))
    allow_fragments(out, probe.fragments)
    allow_fragments(into, probe.fragments)
    message = (out, source.port, target, probe)
    result = Result(error=_send(*message))
    while result.error in ("", DROPPED) and result.answered < probe.count and time.monotonic() < deadline:
        # Most packets have come by now: only for the others there is anything to ask.
        if not (ready := select.select([out, into], [], [], 0)[0]):
            if settled():
                break
            ready = select.select([out, into], [], [], _POLL)[0]
        for sock in ready:
            result = _receive(sock, result, *message)
    # Whatever had come when `settled` was asked is counted; what the kernel has answered may still lie at the target;
    # and nothing may come twice.
    while ready := select.select([out, into], [], [], 0)[0]:
        for sock in ready:
            result = _receive(sock, result, *message)
    return result


def _socket(end: Address, probe: Probe, deadline: float) -> socket.socket:
    if probe.protocol == "udp":
        sock = bound_socket(end, socket.SOCK_DGRAM, deadline)
    else:
        protocol = socket.IPPROTO_ICMP if end.family == socket.AF_INET else socket.IPPROTO_ICMPV6
        sock = bound_socket(replace(end, port=0), socket.SOCK_RAW, deadline, protocol)
    sock.setblocking(False)
    return sock


def _send(out: socket.socket, ident: int, target: Address, probe: Probe) -> str:
    error = ""
    for number in range(probe.count):
        payload = _payload(probe.size, number)
        if probe.protocol == "icmp":
            payload = icmp.echo_request(_version(out), ident, number, payload)
        try:
            out.sendto(payload, (target.ip, target.port))
        except OSError as refusal:
            error = errno.errorcode.get(refusal.errno or 0, str(refusal))
            if error != DROPPED:
                break
    return error


def _receive(
    sock: socket.socket, result: Result, out: socket.socket, ident: int, target: Address, probe: Probe
) -> Result:
    """Take one packet; answer a datagram that arrived. An echo request is answered by the kernel."""
    data, peer = sock.recvfrom(1 << 17)
    payloads = {_payload(probe.size, number): number for number in range(probe.count)}
    if probe.protocol == "udp":
        if data not in payloads:
            raise ExchangeError(f"{probe}: {len(data)} bytes arrived that nobody sent")
        if sock is out:
            return replace(result, answered=result.answered + 1)
        sock.sendto(data, peer)
        return replace(result, arrived=result.arrived + 1)
    data = icmp.message(sock.family, data)
    kind, _, _, found, _ = icmp.ECHO.unpack_from(data)
    # A raw socket gets all ICMP of its namespace: other exchanges, neighbour discovery.
    request, reply = icmp.REQUEST_AND_REPLY[_version(sock)]
    if found != ident or data[icmp.ECHO.size :] not in payloads:
        return result
    if sock is out and kind == reply and peer[0] == target.ip:
        return replace(result, answered=result.answered + 1)
    if sock is not out and kind == request:
        return replace(result, arrived=result.arrived + 1)
    return result


def _version(sock: socket.socket) -> int:
    return 6 if sock.family == socket.AF_INET6 else 4


def _payload(size: int, number: int) -> bytes:
    return (bytes([number]) * 8 + bytes(range(256)) * (size // 256 + 1))[:size]


def _tcp(
    stack: ExitStack, source: Address, target: Address, probe: Probe, settled: Callable[[], bool], deadline: float
) -> Result:
    listener = stack.enter_context(bound_socket(target, socket.SOCK_STREAM, deadline))
    listener.listen()
    out = stack.enter_context(bound_socket(source, socket.SOCK_STREAM, deadline))
    out.setblocking(False)
    started = out.connect_ex((target.ip, target.port))
    if started != errno.EINPROGRESS:
        return Result(error=errno.errorcode.get(started, str(started)))
    done, wait = False, 0.0
    while not select.select([listener], [], [], wait)[0]:
        refused = out.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused or done or time.monotonic() > deadline:
            return Result(error=errno.errorcode[refused] if refused else "", segments=tcp_info(out).segments_out)
        done = settled()
        wait = 0.0 if done else _POLL
    into = stack.enter_context(listener.accept()[0])
    for sock in (out, into):
        sock.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        answered = _talk(out, into, probe)
        # Until the last acknowledgement is there, the kernel may send the FIN again.
        while not is_closed(out) and time.monotonic() < deadline:
            time.sleep(_POLL)
        return Result(1, answered, "", tcp_info(out).segments_out)
    except OSError as error:
        return Result(1, 0, errno.errorcode.get(error.errno or errno.ETIMEDOUT, str(error)), tcp_info(out).segments_out)


def _talk(out: socket.socket, into: socket.socket, probe: Probe) -> int:
    """Send all payloads, each echoed, and close: the target first, so that the source's last segment is its FIN."""
    for number in range(probe.count):
        payload = _payload(probe.size, number)
        for sender, receiver in ((out, into), (into, out)):
            sender.sendall(payload)
            data = bytearray()
            while len(data) < probe.size and (chunk := receiver.recv(1 << 20)):
                data += chunk
            if data != payload:
                raise ExchangeError(f"{probe}: {len(data)} bytes arrived that differ")
    for sender, receiver in ((into, out), (out, into)):
        sender.shutdown(socket.SHUT_WR)
        if receiver.recv(1):
            raise ExchangeError(f"{probe}: more arrived than was sent")
    return probe.count
