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
SO_MEMINFO, SK_MEMINFO_DROPS = 55, 8
IP_RECVTTL, IPV6_RECVHOPLIMIT = 12, 51
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, IPV6_DONTFRAG = 10, 23, 62
IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 0, 2
TCP_INFO_TOTAL_RETRANS, TCP_INFO_SEGS_OUT = 100, 136
"""What Python's socket module lacks of uapi's socket.h, in.h and in6.h; the last are offsets in tcp.h's tcp_info."""

BUFFER = 4 << 20
"""Bytes of socket buffer: a receiver that sleeps for a second at 2000 packets a second still loses none."""

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


def report_hop_limit(sock: socket.socket) -> None:
    """Make recvmsg() of a UDP socket say with which TTL or hop limit each packet came."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)


def hop_limit(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the TTL or hop limit out of recvmsg()'s ancillary data, of a socket that reports nothing else."""
    return int.from_bytes(ancillary[0][2], sys.byteorder) if ancillary else -1


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


def retransmits(sock: socket.socket) -> int:
    """Return how many segments this TCP socket has sent more than once."""
    return _tcp_info(sock, TCP_INFO_TOTAL_RETRANS)


def segments_sent(sock: socket.socket) -> int:
    """Return how many segments this TCP socket has sent, SYN, FIN and bare acknowledgements included."""
    return _tcp_info(sock, TCP_INFO_SEGS_OUT)


def _tcp_info(sock: socket.socket, offset: int) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", info, offset)[0])


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
