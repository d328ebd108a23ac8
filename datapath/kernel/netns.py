"""Entering a network namespace for as long as it takes to open a socket in it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datapath.errors import ReloadlabError
from datapath.kernel.libc import check, function

CLONE_NEWNET = 0x40000000
OWN = Path("/proc/thread-self/ns/net")
"""The calling thread's namespace; /proc/self is the main thread's."""

_setns = function("setns", ctypes.c_int, ctypes.c_int)


class NamespaceNotFound(ReloadlabError):
    """A missing network namespace."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"network namespace {path} does not exist")
        self.path = path


@contextmanager
def enter(netns: Path) -> Iterator[None]:
    """Put the calling thread into the namespace at `netns`, and back into the one that it came from.

    A socket opened inside stays bound to the namespace after the thread has left. OSError if the kernel refuses.
    """
    with ExitStack() as stack:
        back = _open(stack, OWN)
        try:
            target = _open(stack, netns)
            stack.callback(_join, back, OWN)
            _join(target, netns)
        except OSError as error:
            # A file that is no namespace (any more): its mount is gone.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
                raise NamespaceNotFound(netns) from error
            raise
        yield


def _open(stack: ExitStack, path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _join(fd: int, path: Path) -> None:
    check(_setns(fd, CLONE_NEWNET), str(path))
