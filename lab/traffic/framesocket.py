"""Whole Ethernet frames on a device: what no ordinary socket sends or shows."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.kernel.netns import enter
from lab.system.pace import slowness

_TIMEOUT = 2.0
"""Seconds in which a frame comes, on an ordinary machine (lab.system.pace)."""
_ETH_P_ALL, _SOL_PACKET = 3, 263
_PACKET_IGNORE_OUTGOING = 23
"""Option of packet(7): what this host sends is not shown; uapi's linux/if_packet.h, Linux 4.20."""


class FrameSocket:
    """Sends and receives whole frames on an interface of a namespace; a context manager.

    OSError if there is no such interface, NamespaceNotFound if there is nothing at the path.
    """

    def __init__(self, netns: Path, ifname: str) -> None:
        with enter(netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        try:
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.bind((ifname, _ETH_P_ALL))
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def send(self, frame: bytes) -> None:
        """Transmit a frame as it is."""
        self._socket.send(frame)

    def receive(self, wanted: Callable[[bytes], bool], *, timeout: float | None = None) -> bytes | None:
        """Return the next frame that is wanted, None if none comes within `timeout` seconds; others are passed over.

        Without `timeout`: two seconds, longer on a slow machine.
        """
        deadline = time.monotonic() + (_TIMEOUT * slowness() if timeout is None else timeout)
        while select.select([self._socket], [], [], max(deadline - time.monotonic(), 0))[0]:
            frame = self._socket.recv(1 << 17)
            if wanted(frame):
                return frame
        return None
