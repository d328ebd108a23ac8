"""The root file system of a box: packages by mmdebstrap, wheels by pip; each kept until its content changes."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.box.plan import CannotBuild, Release, content_digest
from lab.system import tools
from lab.vm.fetch import machine_sources, private_apt

WHEELS = "usr/share/reloadlab/wheels"
"""Where a box has the packages of requirements.lock; tools/setup looks there first."""

_SECONDS = 3600.0  # a slow line takes so long for 400 MB
_REQUIRED = ("?essential", "?priority(required)", "apt")
"""What mmdebstrap installs besides, as apt's patterns."""
_INSTALLED = re.compile(r"^Inst (\S+) \((\S+) ", re.MULTILINE)

_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux2010")
"""Tags of wheels that run with the C library of every release here (2.36 and newer)."""


def sources(release: Release) -> list[str]:
    """Return the lines of a sources.list for a release, from the mirrors of this machine; CannotFetch."""
    return machine_sources((release.name, f"{release.name}-updates"), (f"{release.name}-security",))


def versions(release: Release, lines: Sequence[str], state: Path) -> list[str]:
    """Return what would be installed, as `name version`, sorted. `state` is where apt keeps its lists meanwhile.

    ToolError carries apt's words.
    """
    options = private_apt(state, lines)
    installed = state / "status"
    installed.touch()
    tools.run(["apt-get", *options, "update", "-qq"], timeout=_SECONDS)
    argv = ["apt-get", *options, "-o", f"Dir::State::Status={installed}", "--simulate", "--no-install-recommends"]
    said = tools.run([*argv, "install", *_REQUIRED, *release.packages], timeout=_SECONDS)
    return sorted(f"{name} {version}" for name, version in _INSTALLED.findall(said))


def install(release: Release, lines: Sequence[str], output: Path, work: Path, *, time: int) -> None:
    """Write the tar file of a root file system with all packages."""
    argv = [*_mmdebstrap(release, work, time=time), "--quiet", release.name, str(output), *lines]
    tools.run(argv, timeout=_SECONDS)


def unpack(archive: Path, root: Path) -> None:
    """Unpack a root file system; devices are the guest's own business, and are left out."""
    argv = ["tar", "--extract", f"--file={archive}", f"--directory={root}", "--numeric-owner", "--exclude=./dev/*"]
    tools.run(argv, timeout=_SECONDS)


def download_wheels(release: Release, lock: Path, directory: Path) -> None:
    """Download every package of a lock, for the release's Python, checked by its hashes."""
    directory.mkdir(parents=True)
    platforms = [word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    argv += ["--require-hashes", "--implementation", "cp", "--python-version", release.python, *platforms]
    tools.run([*argv, "--dest", str(directory), "--requirement", str(lock)], timeout=_SECONDS)


def cached(directory: Path, prefix: str, parts: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Return the path of what is kept under the digest of `parts`; `make` makes it where it is missing.

    What was kept of the same prefix for other parts is removed.
    """
    path = directory / f"{prefix}-{content_digest(parts, ())[:16]}"
    if not path.exists():
        unfinished = directory / f".unfinished-{path.name}"
        try:
            make(unfinished)
            unfinished.rename(path)
        finally:
            _remove(unfinished)
    for other in directory.glob(f"{prefix}-*"):
        if other != path:
            _remove(other)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _mmdebstrap(release: Release, work: Path, *, time: int) -> list[str]:
    """Return the beginning of its command: in namespaces of its own, which end with us, as do all mounts in there."""
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
    argv += ["--pid", "--fork", "--kill-child", "--mount-proc", "env", f"TMPDIR={work}", f"SOURCE_DATE_EPOCH={time}"]
    argv += [
        "mmdebstrap",
        "--mode=root",
        "--format=tar",
        "--variant=minbase",
        f"--include={','.join(release.packages)}",
    ]
    # A proxy that apt has been told of holds for this apt as well, which reads no file of the machine.
    proxy = tools.run(["apt-config", "dump", "--format", "%v%n", "Acquire::http::Proxy"]).strip()
    return [*argv, f'--aptopt=Acquire::http::Proxy "{proxy}"'] if proxy else argv


def source_date(default: int) -> int:
    """Return SOURCE_DATE_EPOCH of the environment, else `default`; CannotBuild if it is no number."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not text.isdigit():
        raise CannotBuild(f"SOURCE_DATE_EPOCH={text} is no number of seconds: unset it, or give one")
    return int(text) if text else default
