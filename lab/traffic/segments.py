"""The exact account of a TCP connection: every segment that one end has sent must have arrived at the other.

Retransmissions do not tell losses from acknowledgements that were late, as they are on a busy machine, nor do they show
a lost acknowledgement. The kernel counts the segments at both ends (TCP_INFO), and both ends are ours.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from lab.system.sockets import TcpInfo, tcp_info
from lab.traffic.report import Direction, Event, LostPacket

_READINGS = 20
"""The counters of two ends are read one after the other: what passes in between is gone when they are read again."""

_T = TypeVar("_T")


class Segments:
    """The segments between two sockets since both were quiet for the first time."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._ends = (source, target)
        self._offsets = _missing(*self._read())
        self._lost: tuple[list[LostPacket], list[LostPacket]] = ([], [])
        self._duplicates: list[Event] = []
        self._again: list[Event] = []
        self._closed_windows: list[Event] = []
        self._window_closed = False
        self._since = (0, 0)
        self._infos = self._read()

    def _read(self) -> tuple[TcpInfo, TcpInfo]:
        return tcp_info(self._ends[0]), tcp_info(self._ends[1])

    def _read_quiet(self) -> tuple[TcpInfo, TcpInfo]:
        """Read the counters, several times while they show a loss or a duplicate that is new."""
        for _ in range(_READINGS):
            infos = self._read()
            counts = self._counts(infos)
            if counts == (len(self._lost[0]), len(self._lost[1])):
                break
        return infos

    def _counts(self, infos: tuple[TcpInfo, TcpInfo]) -> tuple[int, int]:
        """Return how many segments are missing each way; below zero, how many have arrived twice."""
        (requests, replies), (first_requests, first_replies) = _missing(*infos), self._offsets
        return requests - first_requests, replies - first_replies

    def look(self, number: int, now_ns: int, *, quiet: bool) -> None:
        """Read the counters of both ends, before record `number` is sent at `now_ns`; compare them if all is `quiet`.

        What differs was lost since the last comparison. If a segment was only late, the next one takes that back.
        """
        infos = self._infos = self._read_quiet() if quiet else self._read()
        closed = not all(info.window for info in infos)
        if closed and not self._window_closed:
            self._closed_windows.append(Event("zero-window", now_ns))
        self._window_closed = closed
        if not quiet:
            return
        first, since_ns = self._since
        missing = self._counts(infos)
        directions: tuple[Direction, Direction] = ("request", "reply")
        for lost, count, direction in zip(self._lost, missing, directions, strict=True):
            _adjust(lost, count, lambda direction=direction: LostPacket(first, since_ns, direction))  # type: ignore[misc]
        _adjust(self._duplicates, sum(max(-count, 0) for count in missing), lambda: Event("duplicate", since_ns))
        again = sum(max(info.retransmits - info.duplicates, 0) for info in infos)
        _adjust(self._again, again, lambda: Event("retransmit", since_ns))
        self._since = (number, now_ns)

    @property
    def all_arrived(self) -> bool:
        """Whether every segment that was sent has arrived, but for those that are known to be lost.

        The last acknowledgement may still be under way when the last record is there.
        """
        counts = self._counts(self._read())
        return all(count <= len(lost) for count, lost in zip(counts, self._lost, strict=True))

    @property
    def lost(self) -> list[LostPacket]:
        return [*self._lost[0], *self._lost[1]]

    @property
    def events(self) -> list[Event]:
        """Duplicates, closed windows, and retransmissions where a segment was lost: without a loss none was needed."""
        return [*self._duplicates, *self._closed_windows, *(self._again if self.lost else ())]

    @property
    def retransmits(self) -> int:
        return sum(info.retransmits for info in self._infos)

    @property
    def spurious(self) -> int:
        return self.retransmits - (len(self._again) if self.lost else 0)


def _missing(source: TcpInfo, target: TcpInfo) -> tuple[int, int]:
    return source.segments_out - target.segments_in, target.segments_out - source.segments_in


def _adjust(items: list[_T], count: int, make: Callable[[], _T]) -> None:
    """Make the list `count` long: the newest items go, or new ones come."""
    del items[max(count, 0) :]
    while len(items) < count:
        items.append(make())
