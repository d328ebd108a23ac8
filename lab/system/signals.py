"""Ctrl-C, SIGTERM and SIGHUP: as an exception that unwinds, or as a request to stop between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_POLL = 0.005


class SignalEvent(threading.Event):
    """An event for signal handlers: nothing here takes a lock.

    threading.Event.set() does, and waits for ever if the code that the signal interrupted holds it, in wait() say.
    `wait` looks every 5 ms.
    """

    def __init__(self) -> None:
        super().__init__()
        self._happened = False

    def is_set(self) -> bool:
        return self._happened

    def set(self) -> None:
        self._happened = True

    def clear(self) -> None:
        self._happened = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set, or for `timeout` seconds; tell whether it is set."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._happened:
            left = _POLL if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, _POLL))
        return self._happened


@contextmanager
def terminable() -> Iterator[None]:
    """Let every signal do inside what Ctrl-C does: raise KeyboardInterrupt, so that what was begun is undone."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield


@contextmanager
def cancel_on_signals() -> Iterator[threading.Event]:
    """Yield an event that the signals set, for the main thread. Nothing is interrupted half-way.

    Leaving the block after a signal raises KeyboardInterrupt, whatever else was raised because of the cancellation.
    """
    cancelled = SignalEvent()

    def cancel(_: int, __: FrameType | None) -> None:
        cancelled.set()

    try:
        with _handling(cancel):
            yield cancelled
    finally:
        if cancelled.is_set():
            raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have the signals handled like this inside. What is ignored stays so: nohup, or a shell's background job."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in handled.items():
            signal.signal(number, old)
