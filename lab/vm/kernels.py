"""Kernels that a virtual machine can boot: those that were fetched, and images that somebody built."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datapath.errors import ReloadlabError

KERNELS_VARIABLE = "RELOADLAB_KERNELS"
"""Environment variable that names the directory of fetched kernels."""

DEFAULT_DIRECTORY = Path("/var/cache/reloadlab/kernels")
IMAGE = "vmlinuz"
NEWEST = "newest"
"""In the place of a version: the newest that there is."""

_VERSION = re.compile(r"\d+(\.\d+)*([.+~-][\w.+~-]*)?")
_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_TEXT_AT, _SECTOR = 0x20E, 0x200
_HEAD = 0x10000  # bytes: the pointer to the release has 16 bits


class NoKernel(ReloadlabError):
    """A kernel that is not there, or that cannot be booted as it is."""


class UnsafeKernels(ReloadlabError):
    """A directory in which somebody else could put kernels, which read all files of this machine."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(f"{directory} {reason}: name another directory in {KERNELS_VARIABLE}")
        self.directory = directory


@dataclass(frozen=True, slots=True)
class Kernel:
    """An image that can be booted, and the directory of its modules.

    `label` is what the user calls it, and a name that a directory can have; `release` is what `uname -r` says there.
    """

    label: str
    release: str
    image: Path
    modules: Path


def kernels_directory() -> Path:
    """Return the directory of fetched kernels: one directory for each, named by its release."""
    return Path(os.environ.get(KERNELS_VARIABLE) or DEFAULT_DIRECTORY).absolute()


def check_owner(directory: Path) -> None:
    """Raise UnsafeKernels if others than the caller and root may write there."""
    reason = why_unsafe(directory)
    if reason:
        raise UnsafeKernels(directory, reason)


def why_unsafe(directory: Path, *trusted: int) -> str:
    """Return why others than the caller, root and the users `trusted` may write to a directory; empty if none may."""
    info = os.stat(directory)
    if info.st_uid not in (0, os.geteuid(), *trusted):
        return f"belongs to user {info.st_uid}"
    return f"has mode {info.st_mode & 0o7777:04o}, so that others may write" if info.st_mode & 0o022 else ""


def fetched() -> list[Kernel]:
    """Return the kernels that were fetched, the oldest first; UnsafeKernels."""
    try:
        check_owner(kernels_directory())
        names = os.listdir(kernels_directory())
    except FileNotFoundError:
        return []
    there = [kernels_directory() / name for name in sorted(names, key=sort_key) if not name.startswith(".")]
    return [Kernel(path.name, path.name, path / IMAGE, _modules(path, path.name)) for path in there if path.is_dir()]


def find(text: str) -> Kernel:
    """Return the kernel that a user means: a version such as 6.12, of the fetched ones, or the path of an image.

    NoKernel says what to do where there is none.
    """
    if "/" in text:
        return _built(Path(text))
    if text != NEWEST and not _VERSION.fullmatch(text):
        raise NoKernel(f"{text} is no kernel: give a version such as 6.12, or a path with a slash, such as ./{IMAGE}")
    known = {kernel.release: kernel for kernel in fetched()}
    releases = matching(text, list(known))
    if not releases:
        there = f"; there are {', '.join(known)}" if known else ""
        raise NoKernel(f"no kernel {text} has been fetched{there}: reloadlab vm fetch {text}")
    return replace(known[releases[-1]], label=text)


def matching(version: str, releases: Sequence[str]) -> list[str]:
    """Return the releases of a version, the oldest first: 6.12.95+deb12-amd64 is one of 6.12."""
    if version != NEWEST:
        releases = [release for release in releases if re.match(rf"{re.escape(version)}(?![0-9])", release)]
    return sorted(releases, key=sort_key)


def sort_key(release: str) -> tuple[int, ...]:
    """Return what sorts releases by age: their numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", release))


def release_of(image: Path) -> str:
    """Return the release that an x86 image names in its header (Documentation/arch/x86/boot.rst, kernel_version)."""
    with image.open("rb") as file:
        head = file.read(_HEAD + _SECTOR)
    if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        raise NoKernel(f"{image} is no image of an x86 kernel: name the bzImage, or vmlinuz")
    (place,) = struct.unpack_from("<H", head, _TEXT_AT)
    text = head[place + _SECTOR :].split(b"\0", 1)[0].decode(errors="replace")
    words = text.split()
    # It becomes the name of directories.
    if not words or "/" in words[0] or words[0].startswith("."):
        raise NoKernel(f"{image} does not say which release it is")
    return words[0]


def _built(image: Path) -> Kernel:
    """Return a kernel by its image; its modules are in lib/modules/RELEASE beside it, or one directory above."""
    if not image.is_file():
        raise NoKernel(f"{image}: no such file: name the image of a kernel, such as DIR/{IMAGE}")
    image = image.absolute()
    release = release_of(image)
    for base in (image.parent, image.parent.parent):
        if (base / "lib" / "modules" / release).is_dir():
            return Kernel(release, release, image, base / "lib" / "modules" / release)
    raise NoKernel(
        f"{image} has no modules: {image.parent}/lib/modules/{release} is missing; in the kernel's sources: "
        f"make modules_install INSTALL_MOD_PATH={image.parent}"
    )


def _modules(base: Path, release: str) -> Path:
    return base / "lib" / "modules" / release
