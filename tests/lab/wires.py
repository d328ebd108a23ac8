"""Namespaces and wires for the tests: nothing is mounted and nothing named, so nothing can be left behind."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from datapath.kernel.libc import function
from lab.system.netns import CLONE_NEWNET, enter
from lab.system.tools import run
from tests.netns import nsenter

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x1, 0x1000

_unshare = function("unshare", ctypes.c_int)


@contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace that lives as long as a descriptor of this process; yield a path that opens it."""
    made: list[int] = []

    def make() -> None:
        # A thread of its own: it ends with the namespace that it unshared, so there is no way back to get wrong.
        if _unshare(CLONE_NEWNET) == 0:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert made, "unshare(CLONE_NEWNET) failed"
    try:
        path = f"/proc/{os.getpid()}/fd/{made[0]}"
        ip(path, "link", "set", "lo", "up")
        yield path
    finally:
        os.close(made[0])


def ip(netns: str, *words: str) -> str:
    """Run `ip` in a namespace."""
    return run(nsenter(netns, "ip", *words))


def address(netns: str, device: str, *addresses: str) -> None:
    """Give a device its addresses (without duplicate address detection) and set it up."""
    for one in addresses:
        ip(netns, "address", "add", one, "dev", device, *(["nodad"] if ":" in one else []))
    ip(netns, "link", "set", device, "up")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces that reach each other: a at 10.9.0.1 and fd09::1, b at 10.9.0.2 and fd09::2."""

    a: str
    b: str


@contextmanager
def veth_pair() -> Iterator[Pair]:
    """Two namespaces joined by a veth pair; both ends are called eth0."""
    with namespace() as a, namespace() as b:
        ip(a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
        address(a, "eth0", "10.9.0.1/24", "fd09::1/64")
        address(b, "eth0", "10.9.0.2/24", "fd09::2/64")
        yield Pair(a, b)


Judge = Callable[[bytes, bool], Sequence[bytes]]
"""Takes an IP packet and whether it goes from a to b; returns what arrives instead of it, in this order."""


def pass_all(packet: bytes, to_b: bool) -> Sequence[bytes]:
    return [packet]


@dataclass(slots=True)
class Wire:
    """Two namespaces joined by a thread of ours, that asks `judge` what to do with each packet."""

    pair: Pair
    judge: Judge = pass_all
    crashed: list[BaseException] = field(default_factory=list)


def _tun(netns: str) -> int:
    with enter(Path(netns)):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
    return descriptor


@contextmanager
def wire() -> Iterator[Wire]:
    """Join two namespaces by tun devices: the packets on the wire are the test's to drop, copy, delay or forge."""
    with ExitStack() as stack:
        a, b = stack.enter_context(namespace()), stack.enter_context(namespace())
        ends = [_tun(a), _tun(b)]
        for end in ends:
            stack.callback(os.close, end)
        address(a, "tun0", "10.9.0.1/24", "fd09::1/64")
        address(b, "tun0", "10.9.0.2/24", "fd09::2/64")
        made = Wire(Pair(a, b))
        stop, wake = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, stop)

        def forward() -> None:
            try:
                while True:
                    ready, _, _ = select.select([*ends, stop], [], [])
                    if stop in ready:
                        return
                    for source in ready:
                        with suppress(BlockingIOError):
                            to_b = source == ends[0]
                            for packet in made.judge(os.read(source, 65536), to_b):
                                os.write(ends[to_b], packet)
            except BaseException as error:  # noqa: BLE001 (handed to the test's own thread)
                made.crashed.append(error)

        thread = threading.Thread(target=forward)
        thread.start()
        try:
            yield made
        finally:
            os.close(wake)
            thread.join()
        assert not made.crashed, made.crashed


UDP, TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP


def payload(packet: bytes, protocol: int) -> bytes:
    """Return the UDP or TCP payload of an IPv4 packet; empty if it is another protocol's."""
    if packet[0] >> 4 != 4 or packet[9] != protocol:
        return b""
    start = (packet[0] & 15) * 4
    return packet[start + (8 if protocol == UDP else (packet[start + 12] >> 4) * 4) :]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def rechecked(packet: bytes) -> bytes:
    """Return the IPv4 TCP packet with a checksum that is right (without options in the IP header)."""
    segment = bytearray(packet[20:])
    segment[16:18] = bytes(2)
    pseudo = packet[12:20] + bytes([0, TCP]) + len(segment).to_bytes(2, "big")
    segment[16:18] = checksum(pseudo + bytes(segment) + bytes(len(segment) % 2)).to_bytes(2, "big")
    return packet[:20] + bytes(segment)


def reset_of(packet: bytes) -> bytes:
    """Return the RST that would take the place of this IPv4 TCP segment (without options in the IP header)."""
    tcp = bytearray(packet[20:40])
    tcp[12], tcp[13] = 5 << 4, 0x04
    tcp[16:18] = bytes(2)
    pseudo = packet[12:20] + struct.pack("!BBH", 0, TCP, len(tcp))
    tcp[16:18] = checksum(pseudo + bytes(tcp)).to_bytes(2, "big")
    header = bytearray(packet[:20])
    header[2:4] = (len(header) + len(tcp)).to_bytes(2, "big")
    header[10:12] = bytes(2)
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header + tcp)
