"""Network namespaces: made by the calling thread, kept alive by a bind mount, settings written from inside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from datapath.kernel.libc import check, function
from datapath.kernel.netns import CLONE_NEWNET, OWN, NamespaceNotFound, enter
from lab.system.mounts import bind_mount

__all__ = ["CLONE_NEWNET", "NamespaceNotFound", "enter", "inode", "new_netns", "sysctl"]

_unshare = function("unshare", ctypes.c_int)


def new_netns(path: Path) -> int:
    """Move the calling thread into a new network namespace, bind it to the file `path`; return a descriptor of it.

    The thread stays there: call this only in a thread that does nothing else afterwards, never in the main thread.
    OSError if the kernel refuses; the caller closes the descriptor.
    """
    check(_unshare(CLONE_NEWNET), "unshare(CLONE_NEWNET)")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    bind_mount(str(OWN), path)
    return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


def inode(path: Path) -> int:
    """Return the number by which the kernel tells namespaces apart (`net:[4026531840]`)."""
    return os.stat(path).st_ino


def sysctl(values: Iterable[tuple[str, str]]) -> None:
    """Write settings (paths under /proc/sys/net) of the calling thread's namespace; unknown ones are left out."""
    for name, value in values:
        try:
            descriptor = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
