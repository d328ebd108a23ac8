"""The pins of BPF links on a bpffs: a directory for each owner, a device or an endpoint, with a pin for each program.

The names are those of DatapathConfig. A link lives by its pin: when that goes, so does the link, though not at once
(datapath/kernel/links.py). Directories come with the first pin and go with the last one.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Container
from contextlib import suppress
from functools import partial
from pathlib import Path

from datapath.endpoint import LINKS
from datapath.errors import BpfError
from datapath.kernel import bpf, links
from datapath.kernel.libc import check, function

_TRIES = 100
_AT_FDCWD, _RENAME_EXCHANGE = -100, 1 << 1

_renameat2 = function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def directories(owners: Path) -> list[Path]:
    """Return the directories of pins of all owners, sorted; a killed reload may have left one without its pins."""
    return [path / LINKS for path in _entries(owners)]


def owner(directory: Path) -> str:
    """Return the name of the owner of a directory of pins."""
    return directory.parent.name


def pins(directory: Path) -> list[Path]:
    """Return the pins in a directory, sorted; none if it does not exist."""
    return _entries(directory)


def ids(directory: Path) -> set[int]:
    """Return the ids of the links that are pinned in a directory; NotALink if something else is."""
    found = set()
    for path in pins(directory):
        with links.pinned(path) as fd:
            if fd is not None:
                found.add(links.info(fd).id)
    return found


def pin(link: int, path: Path) -> None:
    """Pin a link; BpfError with EEXIST if something is pinned there."""
    _in_directory(path.parent, partial(bpf.obj_pin, link, path))


def replace(link: int, path: Path) -> None:
    """Pin a link in the place of whatever is pinned there."""
    path.unlink(missing_ok=True)
    pin(link, path)


def pin_again(link: int, path: Path) -> None:
    """Pin a link where it was, unless something is pinned there."""
    if not path.exists():
        pin(link, path)


def ensure(link: int, path: Path) -> None:
    """Have a link pinned at `path`, in the place of whatever other is pinned there."""
    with links.pinned(path) as there:
        pinned = there is not None and links.info(there).id == links.info(link).id
    if not pinned:
        replace(link, path)


def exchange(link: int, path: Path, other_link: int, other: Path) -> None:
    """Let the pins of two links change their names, in one step if the kernel can (Linux 5.16)."""
    try:
        check(_renameat2(_AT_FDCWD, bytes(path), _AT_FDCWD, bytes(other), _RENAME_EXCHANGE), str(path))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        exchange_in_turn(link, path, other_link, other)


def exchange_in_turn(link: int, path: Path, other_link: int, other: Path) -> None:
    """Do what `exchange` does, one pin after the other: who is killed in between leaves a link without its pin."""
    replace(other_link, path)
    replace(link, other)


def move(path: Path, to: Path) -> None:
    """Give a pin another name, over whatever is pinned there; FileNotFoundError if it is gone."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    _in_directory(to.parent, partial(path.rename, to))
    remove_empty(path.parent)


def unpin(path: Path) -> None:
    """Remove a pin if it is there, and its directory with the last one."""
    path.unlink(missing_ok=True)
    remove_empty(path.parent)


def remove(directory: Path, *, only: Container[str] | None = None) -> None:
    """Remove the pins in a directory, those of some names if `only` has them, and it if it is empty then.

    A link that has another pin, under a later name say, goes on.
    """
    for path in pins(directory):
        if only is None or path.name in only:
            path.unlink(missing_ok=True)
    remove_empty(directory)


def remove_empty(directory: Path) -> None:
    """Remove a directory of pins and that of its owner, unless there is something in them."""
    for each in (directory, directory.parent):
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return


def _in_directory(directory: Path, action: Callable[[], object]) -> None:
    """Make a directory and do something in it, again if another reload has removed it in between, as an empty one."""
    for left in reversed(range(_TRIES)):
        try:
            _make(directory)
            action()
            return
        except (OSError, BpfError) as error:
            if error.errno != errno.ENOENT or not left:
                raise


def _make(directory: Path) -> None:
    # Path.mkdir fails where the directory that it has found is gone when it looks at it.
    for each in reversed((directory, *directory.parents)):
        with suppress(FileExistsError):
            os.mkdir(each, mode=0o700)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
