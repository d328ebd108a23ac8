"""Calls that name files in words: what is made, moved, removed, or opened to be written."""

from __future__ import annotations

import os
import struct

from lab.gates.memory import Process

_AT_FDCWD = -100
_PATHS: dict[str, tuple[tuple[int | None, int], ...]] = {
    "open": ((None, 0),),
    "creat": ((None, 0),),
    "openat": ((0, 1),),
    "openat2": ((0, 1),),
    "rename": ((None, 0), (None, 1)),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "link": ((None, 0), (None, 1)),
    "linkat": ((0, 1), (2, 3)),
    "symlink": ((None, 1),),
    "symlinkat": ((1, 2),),
    "unlink": ((None, 0),),
    "unlinkat": ((0, 1),),
    "mkdir": ((None, 0),),
    "mkdirat": ((0, 1),),
    "rmdir": ((None, 0),),
}
"""For each call, the numbers of the arguments that are a directory's descriptor (None: none) and a path."""

NAMES = frozenset(_PATHS)
"""The calls that name files."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def paths(process: Process, name: str, args: tuple[int, ...]) -> tuple[str, ...]:
    """Return the absolute paths that a call is about, none for one that only opens to read."""
    if name == "openat2":
        (flags,) = struct.unpack_from("=Q", process.read(args[2], 8))
        if not flags & _WRITES:
            return ()
    return tuple(
        process.path(_AT_FDCWD if directory is None else args[directory], args[path])
        for directory, path in _PATHS[name]
    )


def describe(named: tuple[str, ...]) -> str:
    """Return what is done with these paths: one, or one that becomes the other."""
    return " -> ".join(named)
