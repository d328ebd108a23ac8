"""The processes of a loader: those of its session, and those that live in its mount namespace, whoever started them."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from lab.system.process import status_fields

_SO_SNDBUFFORCE = 32
_BUFFER = 1 << 24
"""Bytes that may be under way to who waits for a process: it reads when that has ended."""


def members(mounts: int, leader: int | None = None) -> Iterator[int]:
    """Yield the ids of the processes that live in a mount namespace, or in the session of `leader`, but for that one.

    `mounts` is a descriptor of the namespace: as long as it is open, no other namespace has its number.
    """
    namespace = os.fstat(mounts).st_ino
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or (pid := int(entry.name)) in (leader, os.getpid()):
            continue
        try:
            state, _, _, session = status_fields(pid)[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX" and (int(session) == leader or _mounts_of(pid) == namespace):
            yield pid


def kill_members(mounts: int, leader: int | None = None) -> tuple[int, ...]:
    """Kill all members and wait until they are gone; return those that there were.

    Two looks in a row must find none: what a process starts before it ends may be where the first one has been already.
    """
    killed: set[int] = set()
    empty = 0
    while empty < 2:
        found = list(members(mounts, leader))
        empty = 0 if found else empty + 1
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.001)
    return tuple(sorted(killed))


def _mounts_of(pid: int) -> int | None:
    """Return the number of a process's mount namespace; None if it has ended, or is none that we may look at."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM):
            raise
        return None


@contextmanager
def none_left() -> Iterator[Callable[[int], None]]:
    """Yield what a forked process calls with the mount namespace of each loader that it starts.

    At the end, when that process is gone, what lives in these namespaces is killed: if it was killed itself, the kernel
    has killed its loaders, but not what these had started.
    """
    with ExitStack() as stack:
        here, there = (stack.enter_context(end) for end in socket.socketpair())
        there.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        here.setblocking(False)

        def note(mounts: int) -> None:
            socket.send_fds(there, [b"\0"], [mounts])

        try:
            yield note
        finally:
            for mounts in _received(here):
                stack.callback(os.close, mounts)
                kill_members(mounts)


def _received(end: socket.socket) -> Iterator[int]:
    """Yield the descriptors that have come."""
    while True:
        try:
            _, found, _, _ = socket.recv_fds(end, 1, 1)
        except BlockingIOError:
            return
        yield from found
