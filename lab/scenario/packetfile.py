"""The packets around the findings of a scenario, in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import ReloadlabError
from lab.node.node import Node
from lab.node.topology import NODE
from lab.system.output import OutputDirectory
from lab.watch import pcapng
from lab.watch.packet_ring import PacketRing

_MODE = 0o600
"""Packets are for nobody else to read."""


class CaptureFailed(ReloadlabError):
    """Packets that cannot be captured, or a file that cannot be written; `errno` is kept."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"{path}: packets are not captured: {error.strerror}")
        self.path, self.errno = path, error.errno


class PacketFile:
    """A context manager: keeps the last packets of all interfaces of nodes, for `write`. Raises CaptureFailed.

    The file is written as results are (lab.system.output): no link is followed, and it belongs to the user of sudo.
    """

    def __init__(self, path: Path, nodes: Sequence[Node]) -> None:
        self._path = path
        self._ring = PacketRing({node.name: node.netns(NODE) for node in nodes})

    def __enter__(self) -> Self:
        try:
            self._ring.__enter__()
        except OSError as error:
            raise CaptureFailed(self._path, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._ring.__exit__(kind, value, tb)

    @property
    def gaps(self) -> list[str]:
        """What was not captured, as texts."""
        return self._ring.gaps

    def write(self, around: Iterable[int]) -> Path | None:
        """Write the packets around these times (CLOCK_MONOTONIC, nanoseconds), as pcapng; None if there are none.

        CaptureFailed if the file cannot be written, BadDirectory if its directory is a link.
        """
        packets = self._ring.packets(list(around))
        if not packets:
            return None
        try:
            with OutputDirectory(self._path.parent) as directory:
                directory.write(self._path.name, pcapng.encode(packets), mode=_MODE)
        except OSError as error:
            raise CaptureFailed(self._path, error) from error
        return self._path
