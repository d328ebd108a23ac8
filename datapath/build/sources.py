"""The C sources as one digest: an edited source is another template. Links are followed, to directories too."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable
from copy import copy
from pathlib import Path

from datapath.base.mapnames import POLICY, POLICY_V2

_SUFFIXES = (".c", ".h")
# A checkout has thousands of lines here that no program of a node includes.
_SKIPPED = frozenset({"tests", "complexity-tests", "__pycache__"})

_Stamp = tuple[int, int, int, int]


class SourceTree:
    """The *.c and *.h below `library`, read once, and again only when a stat says that something changed."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._lock = threading.Lock()
        self._stamps: dict[str, _Stamp] = {}
        self._digest = ""

    def inherited(self) -> SourceTree:
        """Return a tree for a forked process that knows what this one does, whoever held its lock at the fork."""
        tree = copy(self)
        tree._lock = threading.Lock()
        return tree

    def digest(self) -> str:
        """Return the SHA-256 over names and contents; a library that is not there has that of nothing."""
        with self._lock:
            if not self._stamps or not self._unchanged():
                self._read()
            return self._digest

    def covers(self, files: Iterable[Path]) -> bool:
        """Tell whether all these files are among those that the last digest was made of."""
        with self._lock:
            known = {os.path.realpath(path) for path in self._stamps}
        return all(os.path.realpath(file) in known for file in files)

    def _unchanged(self) -> bool:
        # The directories are among the stamps: a file that appeared or went changed its directory.
        try:
            for path, stamp in self._stamps.items():
                if _stamp(path) != stamp:
                    return False
        except OSError:
            return False
        return True

    def _read(self) -> None:
        stamps: dict[str, _Stamp] = {}
        digest = hashlib.sha256()
        entered: set[str] = set()
        for directory, subdirectories, names in os.walk(self.library, followlinks=True):
            real = os.path.realpath(directory)
            if real in entered:  # a link to a directory that is read already, or that it lies in
                subdirectories.clear()
                continue
            entered.add(real)
            subdirectories[:] = sorted(name for name in subdirectories if name not in _SKIPPED)
            stamps[directory] = _stamp(directory)
            for name in sorted(names):
                path = os.path.join(directory, name)
                # A dangling link, such as an editor's lock, is no source.
                if not name.endswith(_SUFFIXES) or not os.path.isfile(path):
                    continue
                # Stamp before contents: an edit in between is seen as a change the next time.
                stamps[path] = _stamp(path)
                with open(path, "rb") as file:
                    contents = file.read()
                relative = os.path.relpath(path, self.library)
                digest.update(f"{relative}\0{len(contents)}\0".encode())
                digest.update(contents)
        self._stamps, self._digest = stamps, digest.hexdigest()


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
