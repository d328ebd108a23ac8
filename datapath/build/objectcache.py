"""Compiled objects, kept between nodes and between runs: a directory with one file for each content that was compiled.

A file is called after everything that its content depends on (for an object, all that the compiler saw: requests.py)
and holds the SHA-256 of the content, then the content. It appears whole or not at all, and is never changed: any number
of processes may read, add and remove at any time without a lock. What is damaged is no object, and is compiled again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from datapath.errors import ReloadlabError

LIMIT = 256 << 20
"""Bytes. Our own objects have 0.3 to 1 MB each, those of a whole Cilium 2 to 4 MB."""

_DIGEST = hashlib.sha256().digest_size
_KEY = re.compile("[0-9a-f]{64}")
_UNFINISHED = ".unfinished-"
_NO_OBJECT = frozenset({errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.EIO, errno.ESTALE})
"""There is none, a link or a directory has its name, or the file system has lost it: it is compiled again."""

_ABANDONED = 3600
"""Seconds after which a file that is not finished belongs to nobody any more."""


def key_of(*words: str) -> str:
    """Return the name of what depends on these words and on nothing else."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


class UnsafeCache(ReloadlabError):
    """A directory in which somebody else could put objects that are loaded into the kernel."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory} {reason}: compiled objects are not kept there; name another directory")
        self.directory = directory


class ObjectCache:
    """The objects in `directory`, which is made if it is missing; together they take at most `limit` bytes.

    Those that were not used for longest go first. Files that have no name of `key_of` are others' and stay.
    UnsafeCache if others than the caller may write there.
    """

    def __init__(self, directory: Path, *, limit: int = LIMIT) -> None:
        self.directory = directory
        self._limit = limit

    def get(self, key: str) -> bytes | None:
        """Return the object that was stored under `key`; None if there is none, if it is damaged, or cannot be read."""
        if not self._is_there():
            return None
        try:
            content = self._read(key)
        except OSError as error:
            if error.errno not in _NO_OBJECT:
                raise
            return None
        found = content[_DIGEST:]
        return found if hashlib.sha256(found).digest() == content[:_DIGEST] else None

    def _read(self, key: str) -> bytes:
        descriptor = os.open(self.directory / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # on a read-only file system the order is that of the writing
                os.utime(descriptor)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)

    def put(self, key: str, content: bytes) -> bool:
        """Store an object; False if it cannot be kept: no room, no right, a file system that fails."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._is_there()
            self._make_room(len(content) + _DIGEST)
            self._write(key, content)
        except OSError:
            # What was compiled is there: a cache that fails is no reason to go without it.
            return False
        return True

    def clear(self) -> tuple[int, int]:
        """Remove all objects and return how many there were, and how many bytes they took."""
        found = self._entries() if self._is_there() else []
        for path, _ in found:
            path.unlink(missing_ok=True)
        return len(found), sum(info.st_size for _, info in found)

    def _is_there(self) -> bool:
        try:
            info = os.lstat(self.directory)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(info.st_mode):
            raise UnsafeCache(self.directory, "is no directory")
        if info.st_uid != os.geteuid():
            raise UnsafeCache(self.directory, f"belongs to user {info.st_uid}")
        if info.st_mode & 0o022:
            raise UnsafeCache(self.directory, f"has mode {info.st_mode & 0o7777:04o}, so that others may write")
        return True

    def _write(self, key: str, content: bytes) -> None:
        descriptor, unfinished = tempfile.mkstemp(dir=self.directory, prefix=_UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            os.replace(unfinished, self.directory / key)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
            raise

    def _make_room(self, needed: int) -> None:
        found = self._entries()
        excess = sum(info.st_size for _, info in found) + needed - self._limit
        for path, info in sorted(found, key=lambda entry: entry[1].st_mtime_ns):
            if excess <= 0:
                return
            if path.name.startswith(_UNFINISHED) and time.time() - info.st_mtime < _ABANDONED:
                continue
            path.unlink(missing_ok=True)
            excess -= info.st_size

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        """Return all objects, those that a killed process has not finished as well."""
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                ours = _KEY.fullmatch(entry.name) or entry.name.startswith(_UNFINISHED)
                with suppress(FileNotFoundError):
                    if ours and entry.is_file(follow_symlinks=False):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found
