"""Where compiled objects are kept for all labs: below /var/cache/reloadlab, or where the environment says.

Other things that take long to make and are always the same are kept beside them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from datapath.build.objectcache import ObjectCache, UnsafeCache

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


def kept(key: str) -> bytes | None:
    """Return what was kept under a name of objectcache.key_of; None if there is nothing, or this user may not read it.

    Anybody may make a page; the directory is root's.
    """
    directory = cache_directory()
    with suppress(PermissionError, NotADirectoryError, UnsafeCache):
        return None if directory is None else ObjectCache(directory).get(key)
    return None


def keep(key: str, content: bytes) -> None:
    """Keep something under such a name, if this user may."""
    directory = cache_directory()
    if directory is not None:
        with suppress(UnsafeCache):
            ObjectCache(directory).put(key, content)
