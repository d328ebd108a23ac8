"""What was measured: sources by their hash and commit, macros, loader, how programs are attached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from bpf import LIBRARY
from datapath.errors import ToolError, ToolMissing
from lab.results.result import words
from lab.system import tools

_SOURCES = (".c", ".h")


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
        found["commit"] = revision or commit_of(library or LIBRARY)
    return words(found)


def hash_of(library: Path) -> str:
    """Return the SHA-256 of all C files below a directory, with their names."""
    whole = hashlib.sha256()
    for path in sorted(path for path in library.rglob("*") if path.suffix in _SOURCES and path.is_file()):
        content = path.read_bytes()
        whole.update(f"{path.relative_to(library)}\0{len(content)}\0".encode())
        whole.update(content)
    return whole.hexdigest()


def commit_of(directory: Path) -> str:
    """Return what git calls the commit that a directory is of, `-dirty` if it was changed; empty without git."""
    try:
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
