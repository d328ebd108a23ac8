"""Mounts, and the mount namespace of this process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from datapath.kernel.libc import check, function

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 1 << 14, 1 << 18
MNT_DETACH, UMOUNT_NOFOLLOW = 0x2, 0x8
CLONE_NEWNS = 0x20000

SYSFS = Path("/sys")
SYSFS_BPF = SYSFS / "fs/bpf"
"""Where programs such as bpftool look for pins."""

# os.unshare (Python 3.12) and mount(2) are not in Python 3.11.
_mount = function("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = function("umount2", ctypes.c_char_p, ctypes.c_int)
_unshare = function("unshare", ctypes.c_int)


def mount(kind: str, target: Path, flags: int = 0, options: str = "") -> None:
    """Mount a file system of its own at `target`; OSError if the kernel refuses."""
    check(_mount(kind.encode(), os.fsencode(target), kind.encode(), flags, options.encode()), str(target))
    # Elsewhere (systemd) mounts propagate to all mount namespaces. Ours stay in this one.
    check(_mount(None, os.fsencode(target), None, MS_PRIVATE, None), str(target))


def bind_mount(source: str, target: Path, *, recursive: bool = False) -> None:
    """Make the file `source` appear at `target` as well, with `recursive` also what is mounted below it."""
    flags = MS_BIND | (MS_REC if recursive else 0)
    check(_mount(os.fsencode(source), os.fsencode(target), None, flags, None), str(target))


def umount(target: Path) -> None:
    """Detach `target` and everything mounted below it from the tree at once; the kernel cleans up behind us."""
    check(_umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW), str(target))


def leave_mount_namespace() -> None:
    """Move this process into a mount namespace of its own, from which no mount propagates; there is no way back."""
    check(_unshare(CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    check(_mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "/")


def replace_sysfs(bpffs: Path) -> None:
    """Mount /sys again, as the calling thread's network namespace sees it, with `bpffs` at /sys/fs/bpf.

    The other file systems below /sys (cgroups, tracefs, debugfs) stay where they are. For a process that has left the
    mount namespace of the machine.
    """
    with ExitStack() as stack:
        kept: dict[str, int] = {}
        for point in _mounted_below(str(SYSFS)):
            kept[point] = os.open(point, os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, kept[point])
        mount("sysfs", SYSFS, MS_NOSUID | MS_NODEV | MS_NOEXEC)
        for point, descriptor in kept.items():
            bind_mount(f"/proc/self/fd/{descriptor}", Path(point), recursive=True)
    bind_mount(str(bpffs), SYSFS_BPF)


def _mounted_below(path: str) -> Iterator[str]:
    """Yield what is mounted directly on the file system at `path`, the place of the BPF file system left out."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = next((fields[0] for fields in reversed(mounts) if fields[4] == path), None)
    yield from dict.fromkeys(
        fields[4] for fields in mounts if fields[1] == above and fields[4] not in (path, str(SYSFS_BPF))
    )
