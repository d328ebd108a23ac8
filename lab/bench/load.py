"""Load generators whose one thread owns both ends: nothing waits for another CPU or the scheduler, nothing is lost.

On a veth the kernel takes a packet into the receiver's socket before the sender's call returns. The elapsed time is
therefore what the packet costs one CPU: sending, every device and program on its path, and receiving.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import ReloadlabError
from datapath.kernel.libc import function
from datapath.kernel.netns import enter
from lab.system.sockets import Address, bound_socket

BATCH = 64
"""Packets of one sendmmsg(2); all of them fit into the receiver's buffer."""

TTL = 255
"""Of the UDP packets: the highest, because each run of programs on a captured packet takes one hop."""

TIMEOUT = 5.0
"""Seconds after which a packet counts as lost."""

_ETH_P_ALL = 0x0003
_CHUNK = 1 << 18
_sendmmsg, _recvmmsg = function("sendmmsg"), function("recvmmsg")


@dataclass(frozen=True, slots=True)
class Ends:
    """The sender and the receiver: namespaces and addresses; the kernel chooses the ports."""

    source: Address
    target: Address


class LoadStalled(ReloadlabError):
    """Packets do not arrive; `reason` is the kernel's error, None if there was no answer."""

    def __init__(self, ends: Ends, reason: str | None = None) -> None:
        super().__init__(f"packets from {ends.source.ip} to {ends.target.ip} do not arrive: {reason or 'no answer'}")
        self.reason = reason


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(_IoVec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MmsgHdr(ctypes.Structure):
    """struct mmsghdr; `length` is the number of bytes sent or received."""

    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


class UdpLoad:
    """UDP packets of `size` bytes of payload, one way; a context manager around its two sockets."""

    def __init__(self, ends: Ends, *, size: int = 18, timeout: float = TIMEOUT) -> None:
        self._ends = ends
        self._size = size
        self._timeout = timeout

    def __enter__(self) -> Self:
        self._sender, self._receiver = _udp_pair(self._ends, self._timeout)
        self._buffer = ctypes.create_string_buffer(os.urandom(self._size), self._size)
        self._vector = _IoVec(ctypes.addressof(self._buffer), self._size)
        header = _MsgHdr(iov=ctypes.pointer(self._vector), iovlen=1)
        self._messages = (_MmsgHdr * BATCH)(*[_MmsgHdr(header)] * BATCH)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._sender.close()
        self._receiver.close()

    def run(self, batches: int) -> None:
        """Send and receive `batches` times BATCH packets; LoadStalled if one does not arrive."""
        for _ in range(batches):
            self._all(_sendmmsg, self._sender)
            self._all(_recvmmsg, self._receiver, None)

    def capture(self, netns: Path, ifname: str) -> bytes:
        """Return one of the packets as the frame that arrives at `ifname`, the peer of the sender's device."""
        with enter(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as tap:
            tap.bind((ifname, _ETH_P_ALL))
            tap.settimeout(self._timeout)
            self.run(1)
            while not (frame := tap.recv(1 << 16)).endswith(self._buffer.raw):
                pass
        return frame

    def _all(self, call: Callable[..., int], end: socket.socket, *more: None) -> None:
        done = 0
        while done < BATCH:
            messages = ctypes.byref(self._messages, done * ctypes.sizeof(_MmsgHdr))
            count = call(end.fileno(), messages, BATCH - done, 0, *more)
            if count < 0:
                number = ctypes.get_errno()
                if number != errno.EINTR:
                    raise LoadStalled(self._ends, None if number == errno.EAGAIN else os.strerror(number))
            done += max(count, 0)


class TcpLoad:
    """One TCP connection; a context manager around its two sockets."""

    def __init__(self, ends: Ends, *, timeout: float = TIMEOUT) -> None:
        self._ends = ends
        self._timeout = timeout

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._timeout
        target = bound_socket(self._ends.target, socket.SOCK_STREAM, deadline)
        with target, bound_socket(self._ends.source, socket.SOCK_STREAM, deadline) as client:
            target.listen(1)
            target.settimeout(self._timeout)
            client.settimeout(self._timeout)
            try:
                client.connect(target.getsockname()[:2])
                self._server = target.accept()[0]
            except OSError as error:
                raise LoadStalled(self._ends, error.strerror) from error
            self._client = client.dup()
        with ExitStack() as undo:
            for end in (self._client, self._server):
                undo.callback(end.close)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Other algorithms take a slightly longer round trip for a queue and stay seven times slower.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
                end.setblocking(False)
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._client.close()
        self._server.close()

    def round_trips(self, count: int) -> None:
        """Exchange one byte for one byte, `count` times."""
        client, server = self._client, self._server
        for _ in range(count):
            client.send(b"?")
            self._receive(server, 1)
            server.send(b"!")
            self._receive(client, 1)

    def stream(self, size: int) -> None:
        """Send `size` bytes one way."""
        chunk, buffer = memoryview(bytes(_CHUNK)), bytearray(_CHUNK)
        sent = received = 0
        while received < size:
            with suppress(BlockingIOError):
                sent += self._client.send(chunk[: size - sent]) if sent < size else 0
            try:
                received += self._server.recv_into(buffer)
            except BlockingIOError:
                self._wait(self._server)

    def _receive(self, end: socket.socket, size: int) -> None:
        while True:
            try:
                end.recv(size)
            except BlockingIOError:
                self._wait(end)
            else:
                return

    def _wait(self, end: socket.socket) -> None:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        if not poll.poll(round(self._timeout * 1000)):
            raise LoadStalled(self._ends)


def _udp_pair(ends: Ends, timeout: float) -> tuple[socket.socket, socket.socket]:
    """Return two UDP sockets, connected to each other."""
    deadline = time.monotonic() + timeout
    with ExitStack() as undo:
        receiver = bound_socket(ends.target, socket.SOCK_DGRAM, deadline)
        undo.callback(receiver.close)
        sender = bound_socket(ends.source, socket.SOCK_DGRAM, deadline)
        undo.callback(sender.close)
        receiver.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        )
        if sender.family == socket.AF_INET6:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, TTL)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, TTL)
        sender.connect(receiver.getsockname()[:2])
        receiver.connect(sender.getsockname()[:2])
        undo.pop_all()
    return sender, receiver
