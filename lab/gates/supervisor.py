"""The supervisor of stopped calls: names each, asks what is to become of it, and answers.

It serves calls one after the other, in the order in which they come; those of other threads wait meanwhile. When it
ends, whatever the reason, no call is left waiting: the listener is closed, and what is stopped fails with ENOSYS. It
ends with the process that has put itself under the filter, though what that has started may live on.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import BpfError
from lab.gates import bpfcalls, filecalls, netlinkcalls
from lab.gates.call import RECEIVE, Call
from lab.gates.memory import Process
from lab.gates.seccomp import Listener, Notification

NAMES = bpfcalls.NAMES | netlinkcalls.NAMES | filecalls.NAMES
"""What calls are called, but for commands and messages of later kernels, which have numbers."""

_GONE = (errno.ESRCH, errno.ENOENT, errno.EBADF, errno.EFAULT)
"""What reading a thread fails with if it dies, or its descriptor is closed by another thread, meanwhile."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The call fails with an errno, and does not happen."""

    errno: int


@dataclass(frozen=True, slots=True)
class Kill:
    """The process that makes the call is killed (SIGKILL) there, and the call does not happen."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The process that has put itself under the filter gets a signal, and the call happens.

    Of that process's own call, a handler runs when it is done; the call may be that of a compiler which it has started.
    """

    number: int


Answer = Fail | Kill | Signal | None
"""None: the call happens."""

Decide = Callable[[Call], Answer]


class Supervisor:
    """Decides on the calls of one process, `entered`, and of what it starts; a context manager around the listener.

    `directories` are those whose files and pins count, as the process names them; calls elsewhere happen at once, as
    those on sockets that are not netlink's. Maps are called as they are pinned in `pins`. `receives` also stops what is
    read from netlink sockets.
    """

    def __init__(
        self,
        listener: Listener,
        entered: Process,
        decide: Decide,
        *,
        directories: Sequence[Path],
        pins: Path,
        receives: bool = False,
    ) -> None:
        self._listener = listener
        self._entered = entered
        self._decide = decide
        self._roots = tuple(os.path.normpath(directory) for directory in directories)
        self._receives = receives
        self._maps = bpfcalls.MapNames(pins)
        self._processes: dict[int, Process] = {}
        self._stack = ExitStack()
        self._stack.callback(listener.close)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def serve(self) -> None:
        """Serve calls until the process that entered has ended; what `decide` raises ends it as well."""
        poll = select.poll()
        poll.register(self._listener.descriptor, select.POLLIN)
        poll.register(self._entered.pidfd, select.POLLIN)
        while True:
            happened = dict(poll.poll())
            calls = happened.get(self._listener.descriptor, 0)
            if self._entered.pidfd in happened or (calls and not calls & select.POLLIN):
                return
            if calls:
                notification = self._listener.receive()
                if notification is not None:
                    self._serve(notification)

    def _serve(self, notification: Notification) -> None:
        try:
            process = self._process(notification.thread)
            described = self._describe(process, notification)
        except (OSError, BpfError) as error:
            if error.errno not in _GONE:
                raise
            # Whatever it is, the kernel finds the same and says so.
            described = None
        if described is None or not self._listener.is_waiting(notification):
            self._listener.let_go(notification)
            return
        self._number += 1
        name, subject = described
        answer = self._decide(Call(self._number, name, subject, notification.name, notification.thread))
        if isinstance(answer, Fail):
            self._listener.fail(notification, answer.errno)
        elif isinstance(answer, Kill):
            process.signal(signal.SIGKILL)
        else:
            if isinstance(answer, Signal):
                self._entered.signal(answer.number)
            self._listener.let_go(notification)

    def _process(self, thread: int) -> Process:
        known = self._processes.get(thread)
        if known is None or not known.has(thread):
            # Ids are used again: what is known may be of a thread that has ended.
            known = self._processes[thread] = self._stack.enter_context(Process.of_thread(thread))
        return known

    def _describe(self, process: Process, notification: Notification) -> tuple[str, str] | None:
        """Return (name, subject) of a call, None for one that is no gate."""
        name, args = notification.name, notification.args
        if name == "bpf":
            return bpfcalls.describe(process, args, self._maps)
        if name.startswith(("send", "recv")):
            with process.borrowed(args[0] & 0xFFFFFFFF) as descriptor:
                if not netlinkcalls.is_netlink(descriptor):
                    return None
                if name.startswith("recv"):
                    return (RECEIVE, "") if self._receives else None
                return netlinkcalls.describe(netlinkcalls.sent(process, name, args), descriptor)
        named = filecalls.paths(process, name, args)
        inside = any(path == root or path.startswith(f"{root}/") for path in named for root in self._roots)
        return (name, filecalls.describe(named)) if inside else None
