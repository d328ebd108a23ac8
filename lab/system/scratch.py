"""Temporary directories; what a killed process leaves is removed by the next process that makes one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "reloadlab-scratch-"
"""Directories of this prefix are ours. One whose lock nobody holds is removed."""


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new directory, which is removed at the end; its lock says that it is in use."""
    _sweep()
    while True:
        directory = Path(tempfile.mkdtemp(prefix=PREFIX))
        descriptor = _lock(directory)
        if descriptor is not None:
            break
    try:
        yield directory
    finally:
        try:
            shutil.rmtree(directory)
        finally:
            os.close(descriptor)


def _sweep() -> None:
    """Remove directories of ours that are no longer in use."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # Another user's, or something else of this name, is none of our business.
        with suppress(OSError):
            if left.is_symlink() or left.stat().st_uid != os.geteuid():
                continue
            descriptor = _lock(left)
            if descriptor is not None:
                try:
                    shutil.rmtree(left)
                finally:
                    os.close(descriptor)


def _lock(directory: Path) -> int | None:
    """Return a descriptor that holds a directory; None if somebody else does, or has removed it."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if directory.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
