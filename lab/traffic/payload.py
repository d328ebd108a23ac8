"""What a packet or a record carries: who sent it, its number, and bytes that are known by both."""

from __future__ import annotations

import struct
from collections.abc import Sequence

HEADER = struct.Struct("!QIQ")
"""The token of this run, the flow's index, the packet's number."""

WARM_UP = (1 << 64) - 1
"""The number of packets that only make the path ready (neighbours resolved); they are not counted."""


class Payloads:
    """The payloads of one flow, by number; `sizes` in bytes are used in turn."""

    def __init__(self, token: int, index: int, sizes: Sequence[int]) -> None:
        self._key = (token, index)
        self._paddings = tuple(_padding(max(size - HEADER.size, 0)) for size in sizes)

    def of(self, number: int) -> bytes:
        """Return the payload of that number."""
        return HEADER.pack(*self._key, number) + self._paddings[number % len(self._paddings)]

    def number(self, data: bytes) -> int | None:
        """Return the number in a payload of this flow; None if it is not of this flow."""
        if len(data) < HEADER.size:
            return None
        token, index, number = HEADER.unpack_from(data)
        return number if (token, index) == self._key else None


def _padding(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]
