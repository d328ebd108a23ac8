"""What a box is made of, as values: the release of Debian, its packages, the kernel, and the name that follows."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datapath.errors import ReloadlabError
from lab.vm.kernels import Kernel

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "sfdisk": "fdisk",
    "mkfs.vfat": "dosfstools",
    "mcopy": "mtools",
    "syslinux": "syslinux",
    "/usr/lib/syslinux/mbr/mbr.bin": "syslinux-common",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "tar": "tar",
    "setpriv": "util-linux",
}
"""The programs and the one file that a box is built with, and Debian's packages of them."""

PACKAGES = (
    # A machine that Vagrant can reach: an init, a network, a way in, and a copy of the checkout.
    *("systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "procps", "openssh-server", "sudo", "rsync"),
    # What tools/setup installs elsewhere.
    *("make", "python3-venv", "python3-bpfcc", "iproute2", "iputils-ping", "mount", "strace", "ca-certificates"),
)
"""Packages of every box, without the compiler and the headers, whose names the release knows."""

_RELATIVE = re.compile(r"[^A-Za-z0-9.+~-]")


class CannotBuild(ReloadlabError):
    """A box that cannot be built on this machine, or not like this."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian: its code name and number, the version of its Python, and packages by its own names."""

    name: str
    number: int
    python: str
    own: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """All packages of a box."""
        return (*PACKAGES, *self.own)


RELEASES = {
    release.name: release
    for release in (
        Release("bookworm", 12, "3.11", ("clang-16", "linux-headers-amd64")),
        # Its headers depend on its kernel, which a box has from elsewhere: tracing is off there.
        Release("trixie", 13, "3.13", ("clang",)),
    )
}
"""Releases whose Python is new enough, the default first."""


@dataclass(frozen=True, slots=True)
class BoxPlan:
    """A box to be built: the release, the kernel, and the digest of all that goes into it.

    `time` is what its files are at most dated, in seconds since 1970 (SOURCE_DATE_EPOCH), `options` what the kernel is
    told besides.
    """

    release: Release
    kernel: Kernel
    digest: str
    time: int
    options: str

    @property
    def name(self) -> str:
        """The name of the box, which the Vagrantfile knows as well: linux-6.12, or linux-6.12-trixie."""
        return box_name(self.kernel.label, self.release)

    @property
    def version(self) -> str:
        """Return a version as Vagrant orders them: the day of the newest file, and a number that the content has."""
        return f"{datetime.fromtimestamp(self.time, UTC):%Y%m%d}.{int(self.digest[:8], 16)}"


def box_name(label: str, release: Release) -> str:
    """Return the name of the box of a kernel, by what the user called the kernel."""
    default = next(iter(RELEASES.values()))
    return f"linux-{_RELATIVE.sub('-', label)}" + ("" if release == default else f"-{release.name}")


def content_digest(words: Iterable[str], files: Iterable[Path]) -> str:
    """Return the SHA-256 of words and of the content of files, in hexadecimal; both in the order in which they come."""
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def check_room(free: int, directory: Path, wanted: int, variable: str) -> None:
    """Raise CannotBuild if `free` bytes are fewer than `wanted`."""
    if free < wanted:
        short = f"{directory} has {free >> 20} MB, building a box needs {wanted >> 20}"
        raise CannotBuild(f"{short}: make room, or name another directory in {variable}")


def missing_tools() -> list[str]:
    """Return what of TOOLS is not here."""
    return [name for name in TOOLS if not (Path(name).is_file() if "/" in name else shutil.which(name))]


def check_tools(missing: Iterable[str]) -> None:
    """Raise CannotBuild if some of TOOLS are missing; the line names all packages at once."""
    names = list(missing)
    if names:
        packages = " ".join(dict.fromkeys(TOOLS[name] for name in names))
        raise CannotBuild(f"a box cannot be built without {', '.join(names)}: apt-get install {packages}")
