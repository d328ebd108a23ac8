"""Locks on files and templates: between threads and processes, with a way out for a caller that is cancelled."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import Cancelled, CompileError

_LOCK_POLL = 0.005
"""Seconds between two looks at a lock that another holds, while the caller can be cancelled."""


class Lock:
    """An advisory lock on a file (flock(2)): between threads and processes alike, gone with its holder."""

    def __init__(self, path: Path, cancel: threading.Event) -> None:
        self._fd = _create(path)
        self._path = path
        self._cancel = cancel

    def acquire(self, *, exclusive: bool = True) -> None:
        """Wait for the lock; Cancelled once `cancel` is set."""
        while not self.try_acquire(exclusive=exclusive):
            if self._cancel.wait(_LOCK_POLL):
                raise Cancelled(f"cancelled while waiting for {self._path}")

    def try_acquire(self, *, exclusive: bool = True) -> bool:
        """Acquire the lock if nobody is in the way. Where somebody is, a shared lock that was held is lost."""
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def intact(self) -> bool:
        """Tell whether the locked file is still the one that everybody finds under its name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self.release()
        os.close(self._fd)


class FairLock:
    """A fair reader-writer lock: a later reader does not overtake a waiting writer.

    Two flock(2) locks: the queue is held while one waits for the lock proper, and no longer. So those who come later
    wait behind a writer, who waits only for those that have the lock already; who waits in the queue itself gets it in
    no particular order. A holder or waiter that is killed leaves both.
    """

    def __init__(self, path: Path, cancel: threading.Event) -> None:
        self._lock = Lock(path, cancel)
        try:
            self._queue = Lock(path.with_name(f"{path.name}.queue"), cancel)
        except BaseException:
            self._lock.close()
            raise
        self.exclusive = False
        self._held = False

    def acquire(self, *, exclusive: bool) -> None:
        """Wait for the lock. Turning a shared lock into an exclusive one lets go of it in between; one that is held
        exclusively stays so until it is closed.
        """
        if self.exclusive or (self._held and not exclusive):
            return
        # In the queue with a shared lock in hand we would wait for somebody who waits for us.
        self._lock.release()
        self._held = False
        self._queue.acquire()
        try:
            self._lock.acquire(exclusive=exclusive)
        finally:
            self._queue.release()
        self._held, self.exclusive = True, exclusive

    def try_exclusive(self) -> bool:
        """Turn a shared lock into an exclusive one if nobody else has it; it is lost otherwise.

        Of several who share the lock and try this one after the other, the last one succeeds.
        """
        self.exclusive = self.exclusive or self._lock.try_acquire()
        self._held = self.exclusive
        return self.exclusive

    def close(self) -> None:
        self._queue.close()
        self._lock.close()


@contextmanager
def locked(path: Path, cancel: threading.Event) -> Iterator[None]:
    """Hold the lock on a file that its last holder may remove; if it was removed while waiting, lock the new file."""
    while True:
        lock = Lock(path, cancel)
        try:
            lock.acquire(exclusive=True)
            if lock.intact():
                yield
                return
        finally:
            lock.close()


def _create(path: Path) -> int:
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            # Again, if who holds the lock takes the directory away in between.
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)


class DirectoryLock:
    """flock(2) on a template's directory, which it creates. `waited` is how many seconds another held it."""

    def __init__(self, directory: Path, cancel: threading.Event | None) -> None:
        self.waited = 0.0
        self._directory = directory
        self._cancel = cancel
        self._fd = -1

    def __enter__(self) -> Self:
        while True:
            self._open()
            try:
                self._acquire()
            except BaseException:
                os.close(self._fd)
                raise
            if self.intact():
                return self
            # Removed while we waited: the lock is one on nothing.
            os.close(self._fd)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)

    def intact(self) -> bool:
        """Say whether the locked directory is still the one that everybody finds under its name."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._directory))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        while True:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = f"error: failed to create template directory: {self._directory}: {error.strerror}"
                raise CompileError(self._directory.name, (), reason) from error
            return

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            started = time.monotonic()
        if self._cancel is None:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        else:
            _wait_for(self._try, self._cancel, str(self._directory))
        self.waited += time.monotonic() - started

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def acquire_thread_lock(lock: threading.Lock, cancel: threading.Event | None, what: str = "a template") -> None:
    """Acquire a lock of this process; Cancelled once `cancel` is set."""
    if cancel is None:
        lock.acquire()
    else:
        _wait_for(lambda: lock.acquire(blocking=False), cancel, what)


def _wait_for(attempt: Callable[[], bool], cancel: threading.Event, what: str) -> None:
    while not attempt():
        if cancel.wait(_LOCK_POLL):
            raise Cancelled(f"cancelled while waiting for {what}")
