"""A thread that does something again and again beside the others, and does not end unheard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Repeated:
    """Calls `work` every `interval` seconds, in a thread, while its context is open.

    What `work` raises ends the thread. It is raised by `check`; if nobody has asked by then, it is raised when the
    context is left, unless something else is.
    """

    def __init__(self, name: str, work: Callable[[], object], *, interval: float) -> None:
        self._work = work
        self._interval = interval
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._heard = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        if value is None and not self._heard:
            self.check()

    @property
    def error(self) -> BaseException | None:
        """What has ended the thread; None if nothing has. Who asks has heard of it."""
        self._heard = True
        return self._error

    def check(self) -> None:
        """Raise what has ended the thread, if anything has."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._done.wait(self._interval):
                self._work()
        except BaseException as error:  # noqa: BLE001 - raised by check(), in the thread that wants to know
            self._error = error
