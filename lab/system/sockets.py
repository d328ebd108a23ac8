"""What the traffic engine wants of the kernel's sockets: opened in a namespace, large buffers, exact drop counters."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from datapath.kernel.libc import check, function
from datapath.kernel.netns import enter

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
SO_TIMESTAMPNS = 35
IP_RECVERR, IPV6_RECVERR = 11, 25
SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8
IP_RECVTTL, IPV6_RECVHOPLIMIT = 12, 51
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 10, 23, 62
IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 0, 2
"""What Python's socket module lacks of uapi's socket.h, in.h and in6.h."""

BUFFER = 4 << 20
"""Bytes of socket buffer: a receiver that sleeps for a second at 2000 packets a second still loses none."""

ARRIVAL_SPACE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(16)
"""Bytes of ancillary data that recvmsg() needs for report_arrival()."""

_TIMESPEC = struct.Struct("=qq")
_TCP_INFO = struct.Struct("=100xI32xII72xI8xI")
"""total_retrans, segs_out, segs_in, dsack_dups and snd_wnd of struct tcp_info."""

_TCP_CLOSE = 7

_UNSPEC = bytes(28)
"""A struct sockaddr_in6 of family AF_UNSPEC (0)."""
_connect = function("connect", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_timerfd_create = function("timerfd_create", ctypes.c_int, ctypes.c_int)
_timerfd_settime = function("timerfd_settime", ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Address:
    """An address and port in a network namespace."""

    netns: str
    ip: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ip_address(self.ip).version == 6 else socket.AF_INET


def bound_socket(address: Address, kind: socket.SocketKind, deadline: float, protocol: int = 0) -> socket.socket:
    """Return a socket that lives in the address's namespace and is bound there.

    An IPv6 address that is still tentative is waited for until `deadline` (time.monotonic). OSError if the kernel
    refuses, NamespaceNotFound if there is nothing at the path.
    """
    with enter(Path(address.netns)):
        sock = socket.socket(address.family, kind, protocol)
    try:
        # A port of the kernel's choice must be nobody else's; once this one is closed others may have it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, bool(address.port))
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        _bind(sock, address, deadline)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, address: Address, deadline: float) -> None:
    while True:
        try:
            return sock.bind((address.ip, address.port))
        except OSError as error:
            tentative = error.errno == errno.EADDRNOTAVAIL and address.family == socket.AF_INET6
            if not tentative or time.monotonic() > deadline:
                raise
        # Nothing announces the end of duplicate address detection but netlink, of that namespace.
        time.sleep(0.02)


def report_arrival(sock: socket.socket) -> None:
    """Make recvmsg() of a UDP socket say when each packet came, and with which TTL or hop limit."""
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)


def arrival(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Return out of recvmsg()'s ancillary data the TTL or hop limit, and for how many nanoseconds the packet waited.

    It has waited in the socket since the kernel took it from the last device (net/core/dev.c, netif_rx). -1 and 0 stand
    for what is not there.
    """
    hops, waited = -1, 0
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            hops = int.from_bytes(data[:4], sys.byteorder)
        elif kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIMESPEC.unpack(data)
            # Both by the same clock, which may be set meanwhile.
            waited = max(time.time_ns() - seconds * 1_000_000_000 - nanoseconds, 0)
    return hops, waited


def queue_errors(sock: socket.socket) -> None:
    """Have ICMP errors queued together with the packet that each is about, for refused_payload()."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)


def refused_payload(sock: socket.socket) -> tuple[bytes, str] | None:
    """Take a queued error: the beginning of the packet's payload, and the errno's name; None if there is none."""
    try:
        data, ancillary, _, _ = sock.recvmsg(2048, 256, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return None
    # struct sock_extended_err begins with the errno (uapi/linux/errqueue.h).
    number = next((int.from_bytes(body[:4], sys.byteorder) for _, _, body in ancillary), 0)
    return data, errno.errorcode.get(number, str(number))


def disconnect(sock: socket.socket) -> None:
    """Undo connect() on a socket whose port was the kernel's choice: connected again it has another.

    OSError if refused. Its address stays. It is cheaper than a new socket, for which one must enter the namespace
    (AF_UNSPEC; net/ipv4/udp.c, __udp_disconnect, and net/ipv4/tcp.c, tcp_disconnect).
    """
    check(_connect(sock.fileno(), _UNSPEC, len(_UNSPEC)), "connect(AF_UNSPEC)")


def drops(sock: socket.socket) -> int:
    """Return how many packets this socket has dropped (sk_drops): its buffer was full, or their checksum wrong."""
    info = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64)
    return int(struct.unpack_from("=I", info, 4 * SK_MEMINFO_DROPS)[0])


def allow_fragments(sock: socket.socket, on: bool) -> None:
    """Let the kernel send what is too large in fragments, or refuse it with EMSGSIZE (IPv4: with DF set)."""
    wanted = IP_PMTUDISC_DONT if on else IP_PMTUDISC_DO
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, wanted)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_DONTFRAG, not on)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, wanted)


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What TCP_INFO says of one end of a connection (uapi/linux/tcp.h), counted since it was opened.

    `segments_out` and `segments_in` are all segments, SYN, FIN and bare acknowledgements included. `retransmits` were
    sent again, and the receiver has reported `duplicates` of them as there already (RFC 2883). `window` is what the
    other end lets this one send, in bytes.
    """

    retransmits: int
    segments_out: int
    segments_in: int
    duplicates: int
    window: int


def tcp_info(sock: socket.socket) -> TcpInfo:
    """Return the kernel's account of this end of a connection."""
    return TcpInfo(*_TCP_INFO.unpack_from(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)))


def is_closed(sock: socket.socket) -> bool:
    """Tell whether a TCP socket has no connection, neither an open one nor one whose end the other side has to tell.

    What is in TIME_WAIT is not the socket any more: it is closed, and the kernel gives its port to nobody.
    """
    state: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0] == _TCP_CLOSE


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval and first expiration, each seconds and nanoseconds."""

    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


def periodic_timer(interval_ns: int) -> int:
    """Return a non-blocking timerfd on CLOCK_MONOTONIC; Python has one from 3.13 on."""
    descriptor = check(_timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC), "timerfd_create")
    parts = (ctypes.c_long * 2)(*divmod(interval_ns, 1_000_000_000))
    try:
        check(_timerfd_settime(descriptor, 0, ctypes.byref(_TimerSpec(parts, parts)), None), "timerfd_settime")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
