"""Fetches kernels from the distribution's packages, without installing anything.

apt works on lists and a cache of its own here: the machine's are neither read nor changed. It asks the mirrors that the
machine's own sources name, for other suites of the distribution.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datapath.errors import ReloadlabError, ToolError
from lab.system import tools
from lab.vm.kernels import IMAGE, KERNELS_VARIABLE, check_owner, kernels_directory, matching, sort_key

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")
"""Suites of Debian, with kernels from 5.10 on."""

ROOM = 700 << 20
"""Bytes that must be free: a kernel has up to 110 MB as a package and 400 MB unpacked, apt's lists have 120 MB."""

_PARTS = ("image", "binary", "modules", "base")
"""Packages of one kernel, as far as they exist: from 7.3 on the image and its modules have packages of their own."""
_OTHER_KINDS = re.compile(r"-(cloud|rt|unsigned|dbg)(-|$)")
_SECONDS = 1800.0  # a slow line takes so long for 100 MB
_FORM, _FIELDS = "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)\t$(SIGNED_BY)", 4
_STATE, _UNFINISHED = ".apt", ".unfinished"


class CannotFetch(ReloadlabError):
    """No kernel of that version can be had from here."""


@dataclass(frozen=True, slots=True)
class Source:
    """A mirror of the machine's own sources: its address, a suite of it, whose it is, and the key that signs it.

    What apt does not know is the name of what was asked for, as $(ORIGIN) before the first `apt-get update`.
    """

    uri: str
    suite: str
    origin: str
    key: str

    @property
    def rank(self) -> int:
        """0 for a mirror of Debian, 1 for one that may be, 2 for another's: that has no kernels."""
        return 0 if self.origin.startswith("Debian") else 1 if self.origin.startswith("$") else 2

    def line(self, suite: str) -> str:
        """Return the line of a sources.list for another suite of the same mirror."""
        signed = f"[signed-by={self.key}] " if self.key.startswith("/") else ""
        return f"deb {signed}{self.uri} {suite} main"


def fetch(versions: Sequence[str]) -> list[str]:
    """Fetch the newest kernel of each version, unless it is there, and return their releases.

    CannotFetch if there is none, UnsafeKernels; ToolError carries the words of apt or dpkg.
    """
    directory = kernels_directory()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_owner(directory)
    with alone(directory):
        shutil.rmtree(directory / _UNFINISHED, ignore_errors=True)
        options = private_apt(directory / _STATE, machine_sources())
        check_room(shutil.disk_usage(directory).free, directory)
        try:
            tools.run(["apt-get", *options, "update", "-qq"], timeout=_SECONDS)
        except ToolError as error:
            # A suite that a mirror no longer has is in the way of no other: what is missing then says what there is.
            print(f"reloadlab: warning: apt-get update: {last_words(error)}", file=sys.stderr)
        names = tools.run(["apt-cache", *options, "pkgnames", "linux-"]).split()
        architecture = tools.run(["dpkg", "--print-architecture"]).strip()
        releases = [newest(version, names, architecture) for version in versions]
        for release in releases:
            if not (directory / release).is_dir():
                check_room(shutil.disk_usage(directory).free, directory)
                _unpack(directory, release, [f"linux-{part}-{release}" for part in _PARTS], names, options)
        return releases


def last_words(error: ToolError) -> str:
    """Return the last line that a tool has said of its failure, its exit code if it said nothing."""
    said = error.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {error.returncode}"


def newest(version: str, names: Sequence[str], architecture: str) -> str:
    """Return the newest release of a version among the names of packages; CannotFetch if there is none."""
    prefix = "linux-image-"
    releases = [
        name.removeprefix(prefix) for name in names if re.fullmatch(rf"{prefix}\d+\.\d+\.\d.*-{architecture}", name)
    ]
    usable = sorted((name for name in releases if not _OTHER_KINDS.search(name)), key=sort_key)
    found = matching(version, usable)
    if not found:
        there = sorted({".".join(map(str, sort_key(name)[:2])) for name in usable}, key=sort_key)
        raise CannotFetch(f"there is no kernel {version} here; there are {', '.join(there) or 'none'}")
    return found[-1]


def check_room(free: int, directory: Path) -> None:
    """Raise CannotFetch if `free` bytes are too few for a kernel."""
    if free < ROOM:
        short = f"{directory} has {free >> 20} MB, a kernel needs {ROOM >> 20}"
        raise CannotFetch(f"{short}: make room, or name another directory in {KERNELS_VARIABLE}")


def machine_sources(suites: Sequence[str] = SUITES, security_suites: Sequence[str] = SECURITY_SUITES) -> list[str]:
    """Return the lines of a sources.list for suites of Debian, from the mirrors of this machine; CannotFetch."""
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        raise CannotFetch("packages are fetched on Debian alone: name the image of a kernel by its path")
    listed = tools.run(["apt-get", "indextargets", "--format", _FORM, "Created-By: Packages"])
    return sources(listed, suites, security_suites)


def sources(listed: str, suites: Sequence[str] = SUITES, security_suites: Sequence[str] = SECURITY_SUITES) -> list[str]:
    """Return the lines of a sources.list for suites, from what `apt-get indextargets` lists of the machine's."""
    words = [line.split("\t") for line in listed.splitlines()]
    # A key that stands in the sources themselves has further lines: apt then asks the keys that it trusts.
    own = sorted((Source(*fields) for fields in words if len(fields) == _FIELDS), key=lambda source: source.rank)
    lines = []
    for wanted, mirrors in (
        (suites, [source for source in own if not source.suite.endswith("-security")]),
        (security_suites, [source for source in own if source.suite.endswith("-security")]),
    ):
        lines += [mirrors[0].line(suite) for suite in wanted] if mirrors else []
    if not lines:
        raise CannotFetch("apt has no sources here: name the image of a kernel by its path")
    return lines


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Be alone in a directory of what is kept: another one that fills it is waited for."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"reloadlab: waiting for another one that fills {directory}", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def private_apt(state: Path, lines: Sequence[str]) -> list[str]:
    """Return the options by which apt works in a directory of ours, with the lines of a sources.list."""
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    settings = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::Etc::Preferences": "-",
        "Dir::Etc::PreferencesParts": "-",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _unpack(directory: Path, release: str, packages: Sequence[str], names: Sequence[str], options: list[str]) -> None:
    """Download and unpack a kernel; its directory appears whole or not at all."""
    unfinished = directory / _UNFINISHED
    tree, archives = unfinished / "tree", unfinished / "archives"
    try:
        archives.mkdir(parents=True)
        wanted = [package for package in packages if package in names]
        tools.run(
            ["env", "-C", str(archives), "apt-get", *options, "-qq", "download", *wanted],
            timeout=_SECONDS,
        )
        for archive in archives.iterdir():
            tools.run(["dpkg-deb", "--extract", str(archive), str(tree)], timeout=_SECONDS)
        _arrange(tree, release)
        tools.run(["depmod", "--basedir", str(tree), release], timeout=_SECONDS)
        tree.rename(directory / release)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _arrange(tree: Path, release: str) -> None:
    """Move the image to `vmlinuz`, and the modules to lib/modules/RELEASE; some packages have them elsewhere."""
    modules = tree / "lib" / "modules" / release
    merged = tree / "usr" / "lib" / "modules" / release
    if merged.is_dir():
        modules.parent.mkdir(parents=True, exist_ok=True)
        merged.rename(modules)
    images = [path for path in (tree / "boot" / f"vmlinuz-{release}", modules / "vmlinuz") if path.is_file()]
    if not images or not modules.is_dir():
        raise CannotFetch(f"the packages of {release} hold no image, or no modules")
    images[0].rename(tree / IMAGE)
    for left in ("usr", "boot"):
        shutil.rmtree(tree / left, ignore_errors=True)
