"""The C sources as one digest: an edited source is another template. Links are followed, to directories too."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from datapath.base.mapnames import POLICY, POLICY_V2

_SUFFIXES = (".c", ".h")
# A checkout has thousands of lines here that no program of a node includes.
_SKIPPED = frozenset({"tests", "complexity-tests", "__pycache__"})
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES})

_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The *.c and *.h of a library at one moment; `digest` is the SHA-256 over their names and contents."""

    digest: str
    files: Mapping[str, _Stamp]
    directories: Mapping[str, _Stamp]

    def covers(self, files: Iterable[Path]) -> bool:
        """Tell whether all these files are among those that the digest was made of."""
        known = {os.path.realpath(path) for path in self.files}
        return all(os.path.realpath(file) in known for file in files)

    def is_current(self) -> bool:
        """Tell whether nothing has changed since: a file that appeared or went has changed its directory."""
        try:
            return all(_stamp(path) == stamp for each in (self.files, self.directories) for path, stamp in each.items())
        except OSError:
            return False


class SourceTree:
    """The *.c and *.h below `library`, read once, and again only when a stat says that something changed."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._lock = threading.Lock()
        self._sources: Sources | None = None

    def inherited(self) -> SourceTree:
        """Return a tree for a forked process that knows what this one does, whoever held its lock at the fork."""
        tree = copy(self)
        tree._lock = threading.Lock()
        return tree

    def read(self) -> Sources:
        """Return the sources as they are now; a library that is not there has none."""
        with self._lock:
            if self._sources is None or not self._sources.directories or not self._sources.is_current():
                self._sources = _Reader(self.library).read()
            return self._sources


class _Reader:
    """One pass over a library. Each stamp is taken before what it stands for is read: a later change has another."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._digest = hashlib.sha256()
        self._files: dict[str, _Stamp] = {}
        self._directories: dict[str, _Stamp] = {}
        self._entered: dict[str, str] = {}
        """The real path of each directory, and the name under which its sources are in the digest."""

    def read(self) -> Sources:
        self._enter(str(self._library))
        return Sources(self._digest.hexdigest(), self._files, self._directories)

    def _enter(self, directory: str) -> None:
        try:
            stamp, real = _stamp(directory), os.path.realpath(directory)
            relative = os.path.relpath(directory, self._library)
            if real in self._entered:  # a link to a directory that is read already, or that it lies in
                self._directories[directory] = stamp
                self._digest.update(f"{relative}\0={self._entered[real]}\0".encode(errors="surrogateescape"))
                return
            names = sorted(os.listdir(directory))
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            return
        self._directories[directory] = stamp
        self._entered[real] = relative
        for name in names:
            path = os.path.join(directory, name)
            # A dangling link, such as an editor's lock, is no source.
            if name.endswith(_SUFFIXES) and os.path.isfile(path):
                self._add(path)
            elif name not in _SKIPPED and os.path.isdir(path):
                self._enter(path)

    def _add(self, path: str) -> None:
        self._files[path] = _stamp(path)
        with open(path, "rb") as file:
            contents = file.read()
        relative = os.path.relpath(path, self._library)
        self._digest.update(f"{relative}\0{len(contents)}\0".encode(errors="surrogateescape"))
        self._digest.update(contents)


def policy_map_prefix(library: Path) -> str:
    """Return how the sources expect the names of policy maps to begin, as their own default ep_config.h has it.

    The layout of the map changed together with the name; what has no default has the name of our own sources.
    """
    try:
        text = (library / "ep_config.h").read_text(errors="replace")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return POLICY
    return POLICY_V2 if f"test_{POLICY_V2}" in text else POLICY


def _stamp(path: str) -> _Stamp:
    # The change time is in it, for editors and tools that set the modification time back.
    info = os.stat(path)
    return info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
