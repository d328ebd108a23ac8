"""Network namespaces: made by the calling thread, kept alive by a bind mount, settings written from inside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from datapath.kernel.netns import NamespaceNotFound, enter

__all__ = [
    "CLONE_NEWNET",
    "NamespaceNotFound",
    "bind_mount",
    "enter",
    "inode",
    "mount",
    "new_netns",
    "sysctl",
    "umount",
]

CLONE_NEWNET = 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8

# os.unshare, os.setns (Python 3.12) and mount(2) are not in Python 3.11. A foreign call releases the interpreter lock.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def new_netns(path: Path) -> int:
    """Move the calling thread into a new network namespace, bind it to the file `path`; return a descriptor of it.

    The thread stays there: call this only in a thread that does nothing else afterwards, never in the main thread.
    OSError if the kernel refuses; the caller closes the descriptor.
    """
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _error("unshare(CLONE_NEWNET)")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    bind_mount("/proc/thread-self/ns/net", path)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def inode(path: Path) -> int:
    """Return the number by which the kernel tells namespaces apart (`net:[4026531840]`)."""
    return os.stat(path).st_ino


def sysctl(values: Iterable[tuple[str, str]]) -> None:
    """Write settings (paths under /proc/sys/net) of the calling thread's namespace; what is not there is left out."""
    for name, value in values:
        try:
            descriptor = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


def mount(kind: str, target: Path, flags: int, options: str) -> None:
    """Mount a file system of its own at `target`; OSError if the kernel refuses."""
    _mount(kind.encode(), target, kind.encode(), flags, options.encode())
    # Elsewhere (systemd) mounts propagate to all mount namespaces. Ours stay in this one.
    _mount(None, target, None, MS_PRIVATE, None)


def bind_mount(source: str, target: Path) -> None:
    """Make the file `source` appear at `target` as well."""
    _mount(source.encode(), target, None, MS_BIND, None)


def umount(target: Path) -> None:
    """Detach `target` and everything mounted below it from the tree at once; the kernel cleans up behind us."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
        raise _error(str(target))


def _mount(source: bytes | None, target: Path, kind: bytes | None, flags: int, options: bytes | None) -> None:
    if _libc.mount(source, os.fsencode(target), kind, flags, options) != 0:
        raise _error(str(target))


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
