"""Signals that must wait: a rollback is not to be left half-way by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let the handlers of signals run when the block has ended, not within it.

    Python runs handlers in the main thread: in any other there is nothing to hold back. A signal that ends or does not
    concern the process stays as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: set[int] = set()

    def remember(number: int, frame: FrameType | None) -> None:
        came.add(number)

    with ExitStack() as delivery, ExitStack() as handlers:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                handlers.callback(signal.signal, number, handler)
                delivery.callback(_deliver, number, came)
                signal.signal(number, remember)
        yield


def _deliver(number: int, came: set[int]) -> None:
    if number in came:
        signal.raise_signal(number)
