"""Where compiled objects are kept for all labs: below /var/cache/reloadlab, or where the environment says."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "RELOADLAB_CACHE"
"""Environment variable that names another directory; empty: nothing is kept."""

DEFAULT_CACHE = Path("/var/cache/reloadlab/objects")


def cache_directory() -> Path | None:
    """Return the directory of compiled objects; None if nothing is kept."""
    named = os.environ.get(CACHE_VARIABLE)
    if named is None:
        return DEFAULT_CACHE
    return Path(named).absolute() if named else None


def keep_nothing() -> None:
    """Keep no compiled objects, and use none, in this process and in those that it starts."""
    os.environ[CACHE_VARIABLE] = ""
