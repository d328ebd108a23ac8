"""What was measured: sources by their hash and commit, macros, loader, how programs are attached."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import datapath
import lab
from bpf import LIBRARY
from datapath.errors import ToolError, ToolMissing
from lab.results.result import words
from lab.system import tools

_SOURCES = (".c", ".h")
_CODE = (".py", ".c")

COMMIT, OWN_COMMIT, OWN_HASH = "commit", "reloadlab commit", "reloadlab sha256"
"""Words of a subject: the commit of the C sources; the commit and the hash of the code that did it, which is ours."""

DIGITS = 12
"""Of a commit where it is shown."""


def subject_of(
    *,
    library: Path | None = None,
    sources: Path | None = None,
    defines: Sequence[tuple[str, str]] = (),
    object_file: Path | None = None,
    loader: str | None = None,
    attach: str | None = None,
    revision: str | None = None,
) -> dict[str, str]:
    """Return the subject of a result in words; `library` None stands for our own sources.

    `sources` are where the sources of a `revision` were checked out.
    """
    found: dict[str, object] = {"loader": loader, "attach": attach}
    found["defines"] = [f"{name}={value}" if value else name for name, value in defines]
    if object_file is not None:
        found |= {"object": object_file, "object sha256": hashlib.sha256(object_file.read_bytes()).hexdigest()}
    else:
        found["library"] = "our sources" if library is None and revision is None else library
        found["library sha256"] = hash_of(library or sources or LIBRARY)
        found[COMMIT] = revision or commit_of(library or LIBRARY)
    return words(found) | own_code()


@cache
def own_code() -> dict[str, str]:
    """Return which code of ours it was, in words: what a result says where nothing else was measured."""
    rooms = [Path(path) for package in (datapath, lab) for path in package.__path__]
    digest = _hash((room.parent, path) for room in rooms for path in _below(room, _CODE))
    return words({OWN_COMMIT: commit_of(rooms[0]), OWN_HASH: digest})


def hash_of(library: Path) -> str:
    """Return the SHA-256 of all C files below a directory, with their names."""
    return _hash((library, path) for path in _below(library, _SOURCES))


def _below(directory: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.suffix in suffixes and path.is_file())


def _hash(files: Iterable[tuple[Path, Path]]) -> str:
    """Return the SHA-256 of files with their names, each as it is called below a directory."""
    whole = hashlib.sha256()
    for directory, path in files:
        content = path.read_bytes()
        whole.update(f"{path.relative_to(directory)}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


def commit_of(directory: Path) -> str:
    """Return what git calls the commit that a directory is of, `-dirty` if it was changed.

    Empty without git, and if the repository around it knows none of its files: such as one in which we are installed.
    """
    try:
        tools.run([*git(directory), "ls-files", "--error-unmatch", "--", "."])
        return tools.run([*git(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).strip()
    except (ToolError, ToolMissing):
        return ""


def git(directory: Path) -> tuple[str, ...]:
    """Return the beginning of a git command in a directory, which may belong to another user than root.

    It runs as the owner of the directory: what is configured in a repository can name programs that git starts, and
    whoever owns it must not have them started as root. Git refuses a repository that belongs to somebody else again.
    """
    command = ("git", "-C", str(directory))
    try:
        owner = os.stat(directory)
    except (FileNotFoundError, NotADirectoryError):
        return command  # git says so
    if os.geteuid() != 0 or owner.st_uid == 0:
        return command
    ids = (f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups")
    return "setpriv", *ids, "env", "-u", "HOME", *command


def short(commit: str) -> str:
    """Return a commit as it is shown: so many digits, and whether the tree was changed."""
    digits, dash, rest = commit.partition("-")
    return digits[:DIGITS] + dash + rest if re.fullmatch(r"[0-9a-f]{40}", digits) else commit
