"""Neighbour solicitations for link-local addresses, which the kernels of pods send by themselves.

A kernel that answered the host side's solicitation checks five seconds later whether that neighbour is still reachable
(RFC 4861, 7.3.3), by its link-local address. Cilium's programs answer for the router and for endpoints, and drop other
solicitations as "Unknown L3 target address". No flow is affected, so these drops are counted separately.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.kernel.netns import enter

_ETH_P_ALL, _ETH_P_IPV6 = 0x0003, 0x86DD
_ICMPV6, _SOLICITATION = 58, 135
_PACKET_OUTGOING = 4
_SO_ATTACH_FILTER = 26

_LOAD_BYTE, _LOAD_HALF, _AND, _EQUAL, _RETURN = 0x30, 0x28, 0x54, 0x15, 0x06
"""Classic BPF (include/uapi/linux/filter.h): packet bytes at an offset, arithmetic, a jump, the verdict."""
_PACKET_TYPE = 0xFFFFF004
"""SKF_AD_OFF + SKF_AD_PKTTYPE."""

_FILTER = (
    (_LOAD_BYTE, 0, 0, _PACKET_TYPE),
    (_EQUAL, 9, 0, _PACKET_OUTGOING),
    (_LOAD_HALF, 0, 0, 12),
    (_EQUAL, 0, 7, _ETH_P_IPV6),
    (_LOAD_BYTE, 0, 0, 20),
    (_EQUAL, 0, 5, _ICMPV6),
    (_LOAD_BYTE, 0, 0, 54),
    (_EQUAL, 0, 3, _SOLICITATION),
    (_LOAD_HALF, 0, 0, 62),
    (_AND, 0, 0, 0xFFC0),
    (_EQUAL, 1, 0, 0xFE80),
    (_RETURN, 0, 0, 0),
    (_RETURN, 0, 0, 0xFFFF),
)


class LinkLocalSolicitations:
    """Counts the solicitations that arrive on the links of a namespace, dropped or not; a context manager."""

    def __init__(self, netns: Path) -> None:
        self._netns = netns
        self._socket: socket.socket
        self._seen: Counter[str] = Counter()

    def __enter__(self) -> Self:
        with enter(self._netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        try:
            self._filter()
        except OSError:
            self._socket.close()
            raise
        return self

    def _filter(self) -> None:
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
        program = ctypes.create_string_buffer(code, len(code))
        fprog = struct.pack("@HP", len(_FILTER), ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        self._socket.setblocking(False)
        # Frames that arrived before the filter was attached.
        while self._receive() is not None:
            pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def seen(self) -> Mapping[str, int]:
        """Return the number of solicitations by interface since the context was entered."""
        while (ifname := self._receive()) is not None:
            self._seen[ifname] += 1
        return dict(self._seen)

    def _receive(self) -> str | None:
        """Receive a frame; return the interface on which it arrived, None if no frame is pending."""
        try:
            _, (ifname, *_) = self._socket.recvfrom(128)
        except BlockingIOError:
            return None
        return str(ifname)
