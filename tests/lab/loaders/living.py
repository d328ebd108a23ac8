"""Who lives in a directory: loaders have their node's state directory as their own, and so has what they start."""

from __future__ import annotations

import os
from pathlib import Path


def living_in(path: Path) -> list[int]:
    """Return the processes that have this directory as their own."""
    found = []
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit() and os.readlink(f"{entry.path}/cwd") == str(path):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended meanwhile, or is none of ours
    return found
