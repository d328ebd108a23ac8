"""The changes of a namespace's network as the kernel tells them, each with its time: filters, qdiscs, links, routes.

What is gone for a moment and there again is in no snapshot. The kernel tells every change to who listens.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.kernel.netns import enter

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_GROUPS = (1, 4, 7, 11)
"""RTNLGRP_LINK, RTNLGRP_TC, RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE."""
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ROOM = 1 << 25
_RECEIVE = 1 << 16


@dataclass(frozen=True, slots=True)
class Change:
    """One message of the kernel with its header; `time_ns` of CLOCK_MONOTONIC is when it was read, just afterwards."""

    time_ns: int
    kind: int
    flags: int
    message: bytes


@dataclass(frozen=True, slots=True)
class Recorded:
    """The changes in their order. `lost_ns` are the times at which the kernel had more to tell than it could keep."""

    changes: tuple[Change, ...]
    lost_ns: tuple[int, ...]

    @property
    def gaps(self) -> list[str]:
        """What was not seen, as texts: nothing, or that messages were lost."""
        lost = len(self.lost_ns)
        return [f"the journal of the network is incomplete: messages were lost {lost} times"] if lost else []


class Journal:
    """Records the changes in a namespace from its beginning on, in a thread. A context manager.

    `room` is how many bytes of messages the kernel keeps until they are read.
    """

    def __init__(self, netns: Path, *, room: int = _ROOM) -> None:
        self._netns = netns
        self._room = room
        self._changes: list[Change] = []
        self._lost: list[int] = []
        self._stopped = False
        self._error: BaseException | None = None
        self._socket: socket.socket
        self._wake: int
        self._thread: threading.Thread

    def __enter__(self) -> Self:
        with enter(self._netns):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._room)
            self._socket.bind((0, 0))
            for group in _GROUPS:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            self._socket.setblocking(False)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> Recorded:
        """Stop recording, and return what was recorded until then; a second call returns the same.

        Raises what has ended the recording before, if anything has.
        """
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)
            self._socket.close()
        if self._error is not None:
            raise self._error
        return Recorded(tuple(self._changes), tuple(self._lost))

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 - raised by stop(), in the thread that wants to know
            self._error = error

    def _read(self) -> None:
        poll = select.poll()
        for descriptor in (self._socket.fileno(), self._wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            while self._receive():
                pass
            if self._wake in ready:
                return

    def _receive(self) -> bool:
        """Take over what the kernel tells next; False if it has nothing to tell."""
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._lost.append(time.monotonic_ns())
            return True
        now, offset = time.monotonic_ns(), 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
            self._changes.append(Change(now, kind, flags, data[offset : offset + length]))
            offset += (length + 3) & ~3
        return True
