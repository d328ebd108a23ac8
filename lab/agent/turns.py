"""A lock between threads of several processes that the thread which holds it may take again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datapath.base.locks import FairLock


class Turn:
    """A reentrant lock on a file: a thread that holds it does not take it again.

    A process that the holder forks counts as that thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holders: list[int] = []

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return threading.get_ident() in self._holders

    @contextmanager
    def take(self, *, exclusive: bool, cancel: threading.Event | None = None) -> Iterator[None]:
        """Hold the lock; Cancelled if `cancel` is set while others have it."""
        if self.is_mine:
            yield
            return
        lock = FairLock(self._path, cancel or threading.Event())
        try:
            lock.acquire(exclusive=exclusive)
            self._holders.append(threading.get_ident())
            try:
                yield
            finally:
                self._holders.remove(threading.get_ident())
        finally:
            lock.close()
