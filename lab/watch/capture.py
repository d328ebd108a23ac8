"""Capture of tunnelled packets in the underlay: the identity in each packet's VNI."""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.kernel.netns import enter
from lab.system.pace import slowness
from lab.system.sockets import BUFFER, SO_RCVBUFFORCE

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_IPPROTO_UDP = 17
_ETHERNET, _UDP, _VXLAN = 14, 8, 8


@dataclass(frozen=True, slots=True)
class Encapsulated:
    """A tunnelled packet: the identity in its VNI, and source and destination of the inner packet."""

    identity: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address


def decode(frame: bytes, port: int) -> Encapsulated | None:
    """Decode a frame of the underlay; None if it is not an IP packet in VXLAN to this port."""
    outer = _ETHERNET + (frame[_ETHERNET] & 0xF) * 4
    inner = outer + _UDP + _VXLAN
    if len(frame) < inner + _ETHERNET or frame[12:14] != _ETH_P_IP.to_bytes(2, "big"):
        return None
    if frame[_ETHERNET + 9] != _IPPROTO_UDP or frame[outer + 2 : outer + 4] != port.to_bytes(2, "big"):
        return None
    identity = int.from_bytes(frame[inner - 4 : inner - 1], "big")
    kind, packet = int.from_bytes(frame[inner + 12 : inner + 14], "big"), frame[inner + _ETHERNET :]
    if kind == _ETH_P_IP and len(packet) >= 20:
        return Encapsulated(identity, IPv4Address(packet[12:16]), IPv4Address(packet[16:20]))
    if kind == _ETH_P_IPV6 and len(packet) >= 40:
        return Encapsulated(identity, IPv6Address(packet[8:24]), IPv6Address(packet[24:40]))
    return None


class TunnelCapture:
    """Captures on all links of the underlay's namespace while its context is open."""

    def __init__(self, underlay: Path, port: int) -> None:
        self._underlay = underlay
        self._port = port
        self._socket: socket.socket
        self._seen: defaultdict[IPv4Address | IPv6Address, set[int]] = defaultdict(set)

    def __enter__(self) -> Self:
        with enter(self._underlay):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def identities(
        self, sources: Collection[IPv4Address | IPv6Address], *, timeout: float = 5.0
    ) -> dict[IPv4Address | IPv6Address, set[int]]:
        """Return the identities captured so far, by inner source address.

        Waits until a packet of every one of `sources` was captured, at most `timeout` seconds of an ordinary machine.
        """
        deadline = time.monotonic() + timeout * slowness()
        missing = set(sources) - self._seen.keys()
        # Traffic goes on meanwhile: the socket may never be empty.
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left if missing else 0)
            try:
                frame = self._socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError):
                break
            found = decode(frame, self._port)
            if found is not None:
                self._seen[found.source].add(found.identity)
                missing.discard(found.source)
        return dict(self._seen)
