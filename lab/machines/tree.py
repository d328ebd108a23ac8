"""The files that go along to a machine: chosen, named by their content, packed."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import lab
from datapath.errors import ReloadlabError

LARGEST = 256 << 20
"""Bytes of the files of one tree, at most: more is taken for a mistake."""

_KEY = 20
"""Digits of a digest that name a tree."""

_LEFT_OUT = frozenset({"__pycache__", "node_modules"})
_LEFT_OUT_AT_TOP = frozenset({"out", "build"})
"""What tools make; below the top these are names as good as any other."""
_PROJECT_FILES = ("pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg", ".git")
_SETUP_FILES = ("requirements.lock", "pyproject.toml", "setup.py", "tools/setup", "tools/as-root")
"""What the environment of a checkout depends on."""


class BadTree(ReloadlabError):
    """Files that cannot go along."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory and those of its files that go along, as paths below it; `key` is a digest of their content."""

    root: Path
    files: tuple[str, ...]
    key: str

    def packed(self) -> bytes:
        """Return the files as a compressed tar file that says nothing of owners and times.

        BadTree if they are no longer those that `key` was made of: there, and in later runs, it would name others.
        """
        digest = hashlib.sha256()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as archive:
            for name in self.files:
                path = self.root / name
                member = tarfile.TarInfo(name)
                content, runs = path.read_bytes(), os.access(path, os.X_OK)
                _add(digest, name, content, runs=runs)
                member.mode = 0o755 if runs else 0o644
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        if digest.hexdigest()[:_KEY] != self.key:
            raise BadTree(f"files in {self.root} changed while they were copied: run it again")
        return buffer.getvalue()


def tree_of(root: Path) -> Tree:
    """Return the tree of a directory: its regular files, but hidden ones and what tools make. BadTree, OSError.

    The user's home is no tree: what goes along stays on machines of others.
    """
    if root == Path.home():
        raise BadTree(f"{root} is your home: all of it would be copied; move the suite to a directory of its own")
    files: list[str] = []
    size = 0
    for directory, names, found in os.walk(root, onerror=_raise):
        names[:] = sorted(name for name in names if not _left_out(Path(directory) / name, root))
        for name in sorted(found):
            path = Path(directory) / name
            if (name.startswith(".") and name not in _PROJECT_FILES) or path.is_symlink() or not path.is_file():
                continue
            size += path.stat().st_size
            if size > LARGEST:
                raise BadTree(
                    f"{root} has more than {LARGEST >> 20} MiB of files, too much to copy: run a smaller tree"
                )
            files.append(path.relative_to(root).as_posix())
    return Tree(root, tuple(files), _digest(root, files))


def our_tree() -> Tree:
    """Return the tree of this project; BadTree if this is not a checkout of it."""
    root = Path(lab.__file__).parents[1]
    if not (root / "tools" / "setup").is_file():
        raise BadTree("--on copies a checkout of reloadlab to the machines, and this one is installed: run it from one")
    return tree_of(root)


def environment_key(root: Path) -> str:
    """Return a digest of what the environment of the checkout in `root` depends on."""
    return _digest(root, _SETUP_FILES)


def project_of(path: Path) -> Path:
    """Return the directory that goes along with a suite: the nearest one with a file that pytest or git looks for.

    If there is none, it is that of the suite itself. `path` is absolute.
    """
    home = path if path.is_dir() else path.parent
    for directory in (home, *home.parents):
        if any((directory / name).exists() for name in _PROJECT_FILES) and directory != Path(directory.anchor):
            return directory
    return home


def _left_out(path: Path, root: Path) -> bool:
    names = _LEFT_OUT | _LEFT_OUT_AT_TOP if path.parent == root else _LEFT_OUT
    hidden = path.name.startswith(".") and path.name != ".ci"
    return hidden or path.name in names or path.name.endswith(".egg-info") or (path / "pyvenv.cfg").exists()


def _digest(root: Path, names: Iterable[str]) -> str:
    """Return a digest of files: of their names, whether they can be executed, and their content."""
    digest = hashlib.sha256()
    for name in names:
        _add(digest, name, (root / name).read_bytes(), runs=os.access(root / name, os.X_OK))
    return digest.hexdigest()[:_KEY]


def _add(digest: hashlib._Hash, name: str, content: bytes, *, runs: bool) -> None:
    digest.update(f"{name}\0{runs}\0{len(content)}\0".encode(errors="surrogateescape"))
    digest.update(content)


def _raise(error: OSError) -> None:
    """Refuse what os.walk would pass over: a directory that cannot be read."""
    raise error
