"""The lab's end of a loader: starts its process when it is needed, and asks it to load and unload."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from datapath.base.locks import acquire_thread_lock
from datapath.endpoint import DatapathConfig
from datapath.errors import Cancelled
from lab.loaders import protocol
from lab.loaders.command import LoaderCommand, answer_seconds
from lab.loaders.process import LoaderProcess
from lab.loaders.protocol import (
    BadAnswer,
    Done,
    Greeting,
    LoaderBroken,
    LoaderDied,
    LoaderFailed,
)

Describe = Callable[[], tuple[DatapathConfig, dict[str, Any]]]
"""Returns the present configuration of the node, and what `hello` says of it."""


class LoaderClient:
    """A loader of one node; a context manager that starts its process, and ends it.

    A process that has broken the protocol, or was told of another node, is replaced by a new one with the next request.
    Any thread may ask; one waits for the other. `done` is the last answer to a request that was done. `on_start` hears
    of the mount namespace of each process.
    """

    def __init__(
        self, command: LoaderCommand, describe: Describe, *, on_start: Callable[[int], object] | None = None
    ) -> None:
        self.command = command
        self.done = Done()
        self._describe = describe
        self._on_start = on_start
        self._timeout = answer_seconds()
        self._lock = threading.Lock()
        self._process: LoaderProcess | None = None
        self._told: Mapping[str, Any] = {}
        self._greeting: Greeting | None = None
        self._gate: Callable[[], None] | None = None
        self._lost: LoaderBroken | None = None
        self._gated: dict[int, LoaderClient] = {}

    def __enter__(self) -> Self:
        with self._lock:
            self._running(None)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            left = self._end()
        if left and value is None:
            raise LoaderBroken(self.name, left)

    @property
    def name(self) -> str:
        """What it calls itself; before it has said that, what it was called by."""
        return self.command.name if self._greeting is None else self._greeting.name

    @property
    def greeting(self) -> Greeting:
        """What it has said of itself when it was started."""
        if self._greeting is None:
            raise LoaderBroken(self.name, "it was not started")
        return self._greeting

    @property
    def pid(self) -> int:
        """Its process; 0 if there is none at this moment."""
        return 0 if self._process is None else self._process.pid

    def supports(self, ability: str) -> bool:
        """Tell whether it has declared an ability, one of protocol.ABILITIES."""
        return ability in self.greeting.supports

    def inherited(self, *, patience: float = 1.0, on_start: Callable[[int], object] | None = None) -> LoaderClient:
        """Return a client for a forked process, which starts one of its own; that has `patience` times as long."""
        other = LoaderClient(self.command, self._describe, on_start=on_start)
        other._greeting = self._greeting
        other._timeout *= patience
        return other

    @contextmanager
    def gated(self, gate: Callable[[], None]) -> Iterator[None]:
        """Have requests of this thread done by a process of their own, which ends with the block.

        It calls `gate` before it becomes the loader. None takes its place: once it has died, requests fail as the one
        did at which it died.
        """
        own, thread = self.inherited(), threading.get_ident()
        own._gate = gate
        with ExitStack() as stack:
            stack.push(own)
            self._gated[thread] = own
            stack.callback(self._gated.pop, thread)
            yield

    def touch(self) -> None:
        """Give all processes their whole time to answer once more: something has held them up."""
        for process in (self._process, *(other._process for other in list(self._gated.values()))):
            if process is not None:
                process.touch()

    def ask(self, request: Mapping[str, Any], *, cancel: threading.Event | None = None) -> Done:
        """Have a request done, and return what the loader says of it.

        LoaderFailed with the loader's own error, LoaderBroken if it does not do its part, Cancelled.
        """
        own = self._gated.get(threading.get_ident())
        if own is not None:
            return own.ask(request, cancel=cancel)
        acquire_thread_lock(self._lock, cancel, f"loader {self.name}")
        try:
            process = self._running(cancel)
            answer = self._asked(process, request, cancel)
            # It may have been cancelled a moment after its answer.
            cancelled = cancel is not None and cancel.is_set()
            left = self._end() if cancelled else ""
            error = protocol.error_of(answer)
            if error is not None and cancelled:
                raise Cancelled(f"cancelled: {'; '.join(filter(None, (error, left)))}")
            if error is not None:
                raise LoaderFailed(self.name, error)
            done = self._done(answer, process)
            self.done = replace(done, warnings=(*done.warnings, f"loader {self.name} {left}")) if left else done
            return self.done
        finally:
            self._lock.release()

    def _done(self, answer: Mapping[str, Any], process: LoaderProcess) -> Done:
        try:
            return protocol.done(answer, process.pid)
        except BadAnswer as bad:
            self._kill()
            raise LoaderBroken(self.name, bad.reason) from bad

    def _asked(
        self, process: LoaderProcess, request: Mapping[str, Any], cancel: threading.Event | None
    ) -> dict[str, Any]:
        can_cancel = self._greeting is not None and protocol.CANCEL in self._greeting.supports
        try:
            return process.ask(request, cancel=cancel, can_cancel=can_cancel)
        except BaseException as error:
            self._process = None
            if isinstance(error, LoaderDied):
                self._lost = error
            raise

    def _running(self, cancel: threading.Event | None) -> LoaderProcess:
        """Return a process that knows the node as it is now."""
        config, node = self._describe()
        process = self._process
        if process is not None and process.has_ended:
            self._process = None
            try:
                raise process.death(" between two requests")
            finally:
                process.kill()
        if process is not None and node != self._told:
            process = None
            left = self._end()
            if left:
                raise LoaderBroken(self.name, left)
        return self._start(config, node, cancel) if process is None else process

    def _start(self, config: DatapathConfig, node: dict[str, Any], cancel: threading.Event | None) -> LoaderProcess:
        if self._gate is not None:
            if self._lost is not None:
                raise self._lost
            self._lost = LoaderBroken(self.name, "its process, whose calls were stopped, is gone")
        process = self._process = LoaderProcess(self.command, config, timeout=self._timeout, gate=self._gate)
        if self._on_start is not None:
            self._on_start(process.mounts)
        hello = {"request": "hello", "version": protocol.VERSION, "node": node}
        answer = self._asked(process, hello, cancel)
        error = protocol.error_of(answer)
        try:
            if error is not None:
                raise BadAnswer(f"refuses the node: {error}")
            self._greeting = protocol.greeting(answer)
        except BadAnswer as bad:
            self._kill()
            raise LoaderBroken(self.name, bad.reason) from bad
        self._told = node
        process.name = self._greeting.name
        return process

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _end(self) -> str:
        """Have the process stop; return what there is to say of those that it has left, which are killed."""
        process, self._process = self._process, None
        left = () if process is None else process.close()
        return f"left processes behind, which were killed: {', '.join(map(str, left))}" if left else ""
