"""A directory that results are written to, maybe by root into somebody else's home.

Nothing here follows a link: not to the directory, not to a file in it. The directory is opened once and used by its
descriptor, and a file takes the place of the old one when it is complete. Under sudo, the file belongs to the user who
called if the directory does; nothing else ever changes its owner.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datapath.errors import ReloadlabError

_ID = re.compile(r"[0-9]{1,9}")

_DEVICES = Path("/dev")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class BadDirectory(ReloadlabError):
    """A directory that results cannot be written to."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The user who called sudo."""

    uid: int
    gid: int

    @classmethod
    def of_sudo(cls) -> Self | None:
        """Return the one that sudo tells of; None if this is not root called by way of sudo."""
        uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
        if os.geteuid() != 0 or not all(_ID.fullmatch(number) for number in (uid, gid)):
            return None
        return cls(int(uid), int(gid))

    def given(self, descriptor: int, directory: int) -> None:
        """Own what was just made in a directory, if the directory is the caller's own."""
        if os.fstat(directory).st_uid == self.uid:
            os.fchown(descriptor, self.uid, self.gid)


class OutputDirectory:
    """A directory held open for writing results; a context manager. It is made, with its parents, if it is missing.

    BadDirectory if it is a link, or /dev, where a file would take the place of a device for everybody; OSError if the
    kernel refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._caller = Caller.of_sudo()
        self._descriptor = -1

    def __enter__(self) -> Self:
        if self.path.is_symlink():
            raise BadDirectory(f"{self.path} is a symbolic link: name the directory that it leads to")
        if self.path.exists() and self.path.samefile(_DEVICES):
            raise BadDirectory(f"{self.path} holds devices: name a file elsewhere")
        self._descriptor = self._open(self.path, os.O_NOFOLLOW)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._descriptor)

    def _open(self, path: Path, flags: int = 0) -> int:
        with suppress(FileNotFoundError):
            return os.open(path, _DIRECTORY | flags)
        parent = self._open(path.parent)
        try:
            return self._make(path.name, parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(parent)

    def _make(self, name: str, parent: int) -> int:
        os.mkdir(name, dir_fd=parent)
        made = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        # Whoever owns the directory above could have put another in its place.
        if self._caller is not None and not os.listdir(made):
            self._caller.given(made, parent)
        return made

    def read(self, name: str) -> str | None:
        """Return the content of a file. None if it is missing, a symbolic link or a directory."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            return None
        # open() would refuse a directory, and leave the descriptor open.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        with open(descriptor, errors="replace") as file:
            return file.read()

    def remove(self, name: str) -> None:
        """Remove a file, or a link of that name; nothing happens if there is none. OSError if the kernel refuses."""
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error

    def write(self, name: str, content: str | bytes, *, mode: int = 0o644, replace: bool = True) -> None:
        """Write a file whole, with these permissions, or leave the old one; OSError tells why.

        Without `replace` one that is there already is such a reason: FileExistsError. BadDirectory if a device, a pipe
        or a socket has the name: it would be gone.
        """
        self._refuse_special(name)
        unfinished = f".{name}.{os.getpid()}"
        directory = self._descriptor
        try:
            self._write(unfinished, content.encode() if isinstance(content, str) else content, mode)
            if replace:
                os.replace(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                os.link(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
                os.unlink(unfinished, dir_fd=directory)
        except OSError as error:
            with suppress(FileNotFoundError):
                os.unlink(unfinished, dir_fd=self._descriptor)
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error

    def _refuse_special(self, name: str) -> None:
        try:
            mode = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        # The kernel refuses to replace a directory; a link is replaced, and not what it leads to.
        if not any(kind(mode) for kind in (stat.S_ISREG, stat.S_ISLNK, stat.S_ISDIR)):
            raise BadDirectory(f"{self.path / name} is not a file")

    def append(self, name: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write at the end of a file, which is made with these permissions if it is missing.

        It stays what it is, and whose: others may hold it open. BadDirectory if it is a link or no file, OSError tells
        why else it cannot be written.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        made = False
        try:
            try:
                descriptor = os.open(name, flags, dir_fd=self._descriptor)
            except FileNotFoundError:
                descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._descriptor)
                made = True
            with open(descriptor, "wb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise BadDirectory(f"{self.path / name} is not a file")
                if made and self._caller is not None:
                    self._caller.given(descriptor, self._descriptor)
                file.write(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise BadDirectory(f"{self.path / name} is a symbolic link: name the file that it leads to") from error
            raise OSError(error.errno, error.strerror, str(self.path / name)) from error

    def size(self, name: str) -> int:
        """Return the bytes of a file, 0 if it is missing."""
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_size
        except FileNotFoundError:
            return 0

    def _write(self, name: str, content: bytes, mode: int) -> None:
        # Of a killed process that had our id.
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=self._descriptor)
        with open(descriptor, "wb") as file:
            file.write(content)
            if self._caller is not None:
                self._caller.given(descriptor, self._descriptor)
