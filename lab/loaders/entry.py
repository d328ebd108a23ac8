"""How a process that is about to become a loader gets into the node, and what it says of it to who has started it."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import ReloadlabError
from datapath.kernel.libc import check, function
from datapath.kernel.netns import CLONE_NEWNET, NamespaceNotFound
from lab.system.mounts import leave_mount_namespace, replace_sysfs
from lab.system.process import end_with_parent

_MOST = 1 << 12
"""Bytes of what it says."""

_setns = function("setns", ctypes.c_int, ctypes.c_int)


class Entry:
    """The way of one process into a node. A context manager, made by who starts the process, which calls `enter`.

    `gate` is called in the process at the end: it may put itself under a filter.
    """

    def __init__(self, netns: Path, bpffs: Path, gate: Callable[[], None] | None) -> None:
        self._netns = netns
        self._bpffs = bpffs
        self._gate = gate
        self._stack = ExitStack()
        self._parent = os.getpid()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._namespace = _open_netns(self._netns)
            stack.callback(os.close, self._namespace)
            self._here, self._there = (stack.enter_context(end) for end in socket.socketpair())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def enter(self) -> None:
        """Move the calling process into the node; what fails is said to the other side as well."""
        try:
            end_with_parent(signal.SIGKILL)
            if os.getppid() != self._parent:
                os._exit(1)
            check(_setns(self._namespace, CLONE_NEWNET), "setns(CLONE_NEWNET)")
            leave_mount_namespace()
            replace_sysfs(self._bpffs)
            self._hand_over()
            if self._gate is not None:
                self._gate()
        except BaseException as error:
            self._there.send(_text(error).encode()[:_MOST])
            raise

    def _hand_over(self) -> None:
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            socket.send_fds(self._there, [b"\0"], [mounts])
        finally:
            os.close(mounts)

    def mounts(self) -> int:
        """Return a descriptor, the caller's, of the mount namespace of the process, which has entered."""
        _, (found,), _, _ = socket.recv_fds(self._here, 1, 1)
        return found

    def failure(self) -> str:
        """Return what the process has said of why it has not entered; empty if it did not come to that."""
        self._here.setblocking(False)
        try:
            data, descriptors, _, _ = socket.recv_fds(self._here, _MOST, 1)
        except BlockingIOError:
            return ""
        if descriptors:
            os.close(descriptors[0])
            return self.failure()
        return data.decode(errors="replace")


def _open_netns(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NamespaceNotFound(path) from error


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, ReloadlabError) else f"{type(error).__name__}: {error}"
