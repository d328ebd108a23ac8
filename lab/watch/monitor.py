"""A reader of a node's cilium_events that survives reloads and migrations of the map."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from datapath.base.mapnames import EVENTS
from datapath.errors import ReloadlabError
from lab.node import registry
from lab.node.maps import open_map
from lab.node.node import Node
from lab.system.perfring import PAGES, PerfReader, Sample
from lab.watch.events import Event, Lost, decode


class MonitorBusy(ReloadlabError):
    """Another process reads the events: a perf ring has one reader."""

    def __init__(self, node: str) -> None:
        super().__init__(f"another process already reads the events of lab {node}")


class Monitor:
    """A context manager: `read` yields the events since its context was entered. MapNotLoaded, MonitorBusy."""

    def __init__(self, node: Node, *, pages: int = PAGES, wakes: bool = True) -> None:
        """Prepare to read the events of a node; `pages` is the size of the ring of each CPU, `wakes` PerfReader's."""
        self._node = node
        self._pages = pages
        self._wakes = wakes
        self._path = node.globals / EVENTS
        self._stack = ExitStack()
        self._listening = ExitStack()
        self._inode: tuple[int, int] | None = None
        self._lost_before = 0
        self._reader: PerfReader

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lock = os.open(
                self._node.root / registry.STATE / "monitor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise MonitorBusy(self._node.name) from error
            stack.callback(lambda: self._listening.close())
            self._listen()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def _listen(self) -> None:
        """Install our rings in the map that is pinned now."""
        with ExitStack() as stack:
            # The pin first: a map that is replaced in between is then opened again by the next `read`.
            inode = self._pinned()
            opened = stack.enter_context(open_map(self._node, EVENTS))
            self._inode = inode
            self._reader = stack.enter_context(PerfReader(opened, pages=self._pages, wakes=self._wakes))
            self._listening = stack.pop_all()

    def _pinned(self) -> tuple[int, int] | None:
        """Return what identifies the pin; None while a migration has moved it aside."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    @property
    def lost(self) -> int:
        """Messages that did not fit the rings until now."""
        return self._lost_before + self._reader.lost

    def read(self, timeout: float) -> Iterator[Event]:
        """Yield the pending events, after waiting at most `timeout` seconds for the first."""
        for sample in self.samples(timeout):
            yield Lost(sample.lost, sample.cpu) if sample.lost else decode(sample.data)

    def samples(self, timeout: float) -> Iterator[Sample]:
        """Yield the pending events as they were written."""
        yield from self._reader.read(timeout)
        if self._pinned() not in (None, self._inode):
            self._lost_before += self._reader.lost
            self._listening.close()
            self._listen()
