"""Marks: which directories are labs, in which mount namespace each of them was made, and for which cluster.

The mark of the lab <name> is the symbolic link .<name>.lab beside its directory. It points to
<id of the boot>:<number of the mount namespace>:<name of the cluster>, which is not a path; the name is empty for a lab
that belongs to no cluster. A link is made in one step, so a mark is never
half written. It is made before the directory and removed after it: a directory without a mark is not a lab. Callers
hold the lock of the run directory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".lab"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where and for which cluster a lab was made: in which mount namespace, since which boot of the machine."""

    boot: str
    mount_namespace: int
    cluster: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the lab was made in a mount namespace other than the caller's, which may still exist."""
        here = _here()
        return self.boot == here.boot and self.mount_namespace != here.mount_namespace

    def processes(self) -> Iterator[int]:
        """Yield the ids of the processes that live in the mount namespace, as far as they are visible."""
        for entry in os.scandir(_PROC):
            if entry.name.isdigit() and _mount_namespace(entry.name) == self.mount_namespace:
                yield int(entry.name)


def add(root: Path, cluster: str = "") -> None:
    """Mark a directory that is about to be made as that of a lab, which may belong to a cluster."""
    here = _here()
    remove(root)
    os.symlink(f"{here.boot}:{here.mount_namespace}:{cluster}", _path(root))


def read(root: Path) -> Mark | None:
    """Return the mark of a directory; None if it has none."""
    try:
        fields = os.readlink(_path(root)).split(":")
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Former versions did not write the cluster.
    boot, number, cluster = fields if len(fields) == 3 else (*fields, "", "")[:3]
    return Mark(boot, int(number), cluster) if number.isdecimal() else Mark("", 0)


def remove(root: Path) -> None:
    """Remove the mark of a directory that is gone; a missing mark is not an error."""
    _path(root).unlink(missing_ok=True)


def labs(run: Path) -> tuple[str, ...]:
    """Return the names of all labs. Marks whose directories are gone, or were never made, are removed."""
    names = []
    for entry in os.scandir(run):
        if not (entry.name.startswith(".") and entry.name.endswith(_SUFFIX) and entry.is_symlink()):
            continue
        name = entry.name[1 : -len(_SUFFIX)]
        if stat.S_ISDIR(_mode(run / name)):
            names.append(name)
        else:
            remove(run / name)
    return tuple(sorted(names))


def _mode(path: Path) -> int:
    """Return the mode of a file, not of what it links to; 0 if it is missing."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0


def _path(root: Path) -> Path:
    return root.with_name(f".{root.name}{_SUFFIX}")


def _here() -> Mark:
    number = _mount_namespace("self")
    assert number is not None
    return Mark(_BOOT_ID.read_text().strip(), number)


def _mount_namespace(pid: str) -> int | None:
    """Return the number of a process's mount namespace; None if the process is gone, or a zombie."""
    try:
        target = os.readlink(_PROC / pid / "ns" / "mnt")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return int(target.removeprefix("mnt:[").removesuffix("]"))
