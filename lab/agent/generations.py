"""The numbers of a node's loads: counted in a file, so that no two loads have the same, in whatever process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from datapath.base.statefile import DamagedFile


def next_generation(path: Path) -> int:
    """Return the next number of the file, which is made if it is missing; DamagedFile if it holds anything else."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            number = _number(path, file.read()) + 1
            # One write, and never a shorter one: a process that is killed leaves one number or the other.
            file.seek(0)
            file.write(str(number).encode())
        finally:
            # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
            fcntl.flock(file, fcntl.LOCK_UN)
    return number


def _number(path: Path, content: bytes) -> int:
    if not content:
        return 1
    if not content.isdigit() or len(content) > 18:
        raise DamagedFile(path, "not a number")
    return int(content)
