"""The last packets of all interfaces of some namespaces, kept in memory and read only around the times of findings.

The kernel puts the packets into a mapped ring (AF_PACKET, TPACKET_V3: Documentation/networking/packet_mmap.rst). It
overwrites nothing, so a thread gives it back the oldest blocks; no packet is looked at before there is a finding.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.kernel.netns import NamespaceNotFound, enter
from lab.system.repeated import Repeated
from lab.system.words import plural
from lab.watch import pcapng
from lab.watch.pcapng import CapturedPacket, Interface

WINDOW_NS = 50_000_000
"""Nanoseconds before and after a finding whose packets are written."""

SIZE = 64 << 20
"""Bytes of a namespace's ring: about 40 s of a scenario's ordinary traffic."""

SNAPLEN = 256
"""Bytes that are kept of each packet."""

_BLOCK = 1 << 18
_FRAME = 1 << 11
_RETIRE_MS = 200
"""Milliseconds after which the kernel hands over a block that is not full."""

_SOL_PACKET, _PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION, _TPACKET_V3 = 263, 5, 6, 10, 2
_STATISTICS = struct.Struct("=III")
"""struct tpacket_stats_v3: packets, those of them that were dropped, and how often the ring was full."""
_SO_ATTACH_FILTER, _RETURN = 26, 0x06
_ETH_P_ALL = 0x0003
_OUTGOING, _ARPHRD_ETHER, _ARPHRD_LOOPBACK = 4, 1, 772
_KERNEL, _USER = 0, 1
_BLOCK_HEAD = struct.Struct("<8xIII4xQ")
"""struct tpacket_block_desc: status, number of packets, offset of the first, sequence number."""
_STATUS = 8
_PACKET_HEAD = struct.Struct("<5I4xH")
"""struct tpacket3_hdr: next, seconds, nanoseconds, captured and original length, offset of the link layer's header."""
_ADDRESS, _ADDRESS_AT = struct.Struct("<4xiHB"), 48
"""struct sockaddr_ll behind it: interface, its hardware type, whether the packet goes out."""


class _Ring:
    """The ring of one namespace."""

    def __init__(self, name: str, netns: Path, size: int) -> None:
        self.name = name
        self._netns = netns
        self._count = size // _BLOCK
        self._links: dict[int, str] = {}
        self._lost = 0
        with enter(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        with ExitStack() as stack:
            stack.callback(self._socket.close)
            self._cut_off()
            self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
            frames = self._count * _BLOCK // _FRAME
            request = struct.pack("<7I", _BLOCK, self._count, _FRAME, frames, _RETIRE_MS, 0, 0)
            # What has arrived already is thrown away by the kernel.
            self._socket.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            self._map = mmap.mmap(self._socket.fileno(), self._count * _BLOCK)
            stack.callback(self._map.close)
            self.learn_names()
            # What came before the filter counts as well.
            self._read_lost()
            stack.pop_all()

    def _cut_off(self) -> None:
        """Have each packet cut off at SNAPLEN, by a filter that takes them all."""
        program = ctypes.create_string_buffer(struct.pack("=HBBI", _RETURN, 0, 0, SNAPLEN), 8)
        fprog = struct.pack("@HP", 1, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)

    def close(self) -> None:
        self._map.close()
        self._socket.close()

    @property
    def lost(self) -> int:
        """Packets that did not fit the ring."""
        self._lost += self._read_lost()
        return self._lost

    def _read_lost(self) -> int:
        """Return how many packets the kernel has dropped since the last time: it counts from 0 again."""
        counted = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(counted)[1])

    def learn_names(self) -> None:
        """Note the names of the interfaces that are there; those of removed ones are kept."""
        with suppress(NamespaceNotFound), enter(self._netns):
            self._links |= dict(socket.if_nameindex())

    def make_room(self) -> None:
        """Give the oldest blocks back to the kernel, as long as it has less than a quarter of the ring."""
        full = self._full()
        for _, at in full[: len(full) - self._count * 3 // 4]:
            struct.pack_into("<I", self._map, at + _STATUS, _KERNEL)

    def _full(self) -> list[tuple[int, int]]:
        """Return (sequence number, position) of the blocks that the kernel has handed over, the oldest first."""
        heads = ((at, _BLOCK_HEAD.unpack_from(self._map, at)) for at in range(0, self._count * _BLOCK, _BLOCK))
        return sorted((sequence, at) for at, (status, _, _, sequence) in heads if status & _USER)

    def newest(self) -> int:
        """Return the sequence number of the last block that was handed over, 0 if there is none."""
        return max((sequence for sequence, _ in self._full()), default=0)

    def packets(self) -> Iterator[CapturedPacket]:
        """Yield the packets of the blocks that were handed over, in the order in which they came."""
        for _, block in self._full():
            _, count, first, _ = _BLOCK_HEAD.unpack_from(self._map, block)
            at = block + first
            for _ in range(count):
                step, seconds, nanoseconds, captured, length, mac = _PACKET_HEAD.unpack_from(self._map, at)
                ifindex, hardware, kind = _ADDRESS.unpack_from(self._map, at + _ADDRESS_AT)
                data = self._map[at + mac : at + mac + captured]
                stamp = seconds * 1_000_000_000 + nanoseconds
                yield CapturedPacket(stamp, self._interface(ifindex, hardware), kind == _OUTGOING, length, data)
                at += step

    def _interface(self, ifindex: int, hardware: int) -> Interface:
        name = self._links.get(ifindex, f"if{ifindex}")
        ethernet = hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)
        return Interface(f"{self.name}:{name}", SNAPLEN, pcapng.ETHERNET if ethernet else pcapng.RAW_IP)


class PacketRing:
    """Keeps the last packets of all interfaces of the given namespaces, by name, while its context is open."""

    def __init__(self, namespaces: Mapping[str, Path], *, size: int = SIZE) -> None:
        """Prepare rings of `size` bytes each. Entering the context raises OSError if the kernel refuses one."""
        self._namespaces = dict(namespaces)
        self._size = size
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._emptying = Repeated("packet-ring", self._make_room, interval=_RETIRE_MS / 1000)
        self._rings: list[_Ring] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name, netns in self._namespaces.items():
                ring = _Ring(name, netns, self._size)
                stack.callback(ring.close)
                self._rings.append(ring)
            stack.enter_context(self._emptying)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, value, tb)
        self._rings.clear()

    @property
    def gaps(self) -> list[str]:
        """What was not captured, as texts. Otherwise what has ended the capture is raised when the context is left."""
        found = []
        if self._emptying.error is not None:
            found.append(f"packets were not captured to the end: {self._emptying.error!r}")
        with self._lock:
            lost = sum(ring.lost for ring in self._rings)
        return [*found, *([f"{plural(lost, 'packet')} not captured: too many came at once"] if lost else [])]

    def packets(self, around: Sequence[int]) -> list[CapturedPacket]:
        """Return the packets within WINDOW_NS of these times (CLOCK_MONOTONIC), in the order in which they came.

        The first packet from each time on has a comment. Times that the rings have forgotten have no packets.
        """
        if not around:
            return []
        self._settle()
        offset = time.time_ns() - time.monotonic_ns()
        times = sorted(at + offset for at in around)
        with self._lock:
            found = [packet for ring in self._rings for packet in ring.packets() if _is_near(packet, times)]
        found.sort(key=lambda packet: packet.time_ns)
        return list(_commented(found, times))

    def _settle(self) -> None:
        """Wait until the kernel has handed over the blocks with what was captured until now; not all are full."""
        before = [ring.newest() for ring in self._rings]
        deadline = time.monotonic() + 3 * _RETIRE_MS / 1000
        while time.monotonic() < deadline and any(map(int.__eq__, before, (ring.newest() for ring in self._rings))):
            time.sleep(_RETIRE_MS / 10_000)

    def _make_room(self) -> None:
        with self._lock:
            for ring in self._rings:
                ring.make_room()
                ring.learn_names()


def _is_near(packet: CapturedPacket, times: Sequence[int]) -> bool:
    """Tell whether one of these times, in their order, is within WINDOW_NS of a packet."""
    index = bisect_left(times, packet.time_ns - WINDOW_NS)
    return index < len(times) and times[index] <= packet.time_ns + WINDOW_NS


def _commented(packets: Sequence[CapturedPacket], times: Sequence[int]) -> Iterator[CapturedPacket]:
    """Yield the packets; the first after each of these times has a comment."""
    marked = {bisect_left(packets, at, key=lambda packet: packet.time_ns) for at in times}
    for index, packet in enumerate(packets):
        yield replace(packet, comment="reloadlab: the time of a finding") if index in marked else packet
