"""Builds a box, unless there is one of the same content: packages, wheels, kernel, and what we make of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.box import image, machine, plan, root
from lab.box.plan import BoxPlan, CannotBuild, Release, check_room, check_tools, content_digest, missing_tools
from lab.system.output import Caller
from lab.vm.fetch import alone
from lab.vm.initramfs import busybox, needed_modules
from lab.vm.kernels import Kernel, why_unsafe
from lab.vm.machine import EMULATED, without_kvm

BOXES_VARIABLE = "RELOADLAB_BOXES"
"""Environment variable that names the directory of boxes; the Vagrantfile reads it as well."""

DEFAULT_DIRECTORY = Path("/var/cache/reloadlab/boxes")

ROOM = 8 << 30
"""Bytes that must be free: the root file system as a tar file and unpacked, the disk, the box."""

_WORK = ".work"
_KEPT = ".kept"
_BUILDERS = tuple(Path(module.__file__ or "") for module in (image, machine, plan, root))


@dataclass(frozen=True, slots=True)
class Box:
    """A box that is there: its name, the path of what Vagrant reads of it, its kernel, and whether it is new."""

    name: str
    path: Path
    kernel: str
    built: bool


def boxes_directory() -> Path:
    """Return the directory of boxes: for each NAME.box, and NAME.json, which says what it is."""
    return Path(os.environ.get(BOXES_VARIABLE) or DEFAULT_DIRECTORY).absolute()


def build(release: Release, kernel: Kernel, lock: Path, *, say: Callable[[str], None]) -> Box:
    """Build the box of a kernel, or return the one that is there if nothing that goes into it has changed.

    `say` gets a line for each step. CannotBuild, NoKernel, CannotFetch; ToolError carries a tool's own words.
    """
    check(lock)
    needed_modules(kernel, image.NEEDED)
    directory = boxes_directory()
    make_directory(directory)
    with alone(directory):
        return _build(release, kernel, lock, directory, say)


def check(lock: Path) -> None:
    """Raise what `build` would, whatever the kernel is: CannotBuild, ToolMissing, UnfitBusybox."""
    check_tools(missing_tools())
    busybox()
    if not lock.is_file():
        raise CannotBuild(f"{lock} is missing: run this in a checkout, or name the lock by --lock")


def make_directory(directory: Path) -> None:
    """Make the directory of boxes, unless it is there; CannotBuild if others could put something there.

    Vagrant runs as a user, who has to read what is in there.
    """
    places = [place for place in (directory, *directory.parents) if not place.exists()]
    if directory == DEFAULT_DIRECTORY:
        # Ours, and maybe made by a command that keeps something there for root alone.
        places += [directory, directory.parent]
    directory.mkdir(parents=True, exist_ok=True)
    for place in places:
        place.chmod(0o755)
    caller = Caller.of_sudo()
    reason = why_unsafe(directory, *(() if caller is None else (caller.uid,)))
    if reason:
        raise CannotBuild(f"{directory} {reason}: name another directory in {BOXES_VARIABLE}")


def make_private(path: Path) -> None:
    """Make a directory for root alone, or check that it is one; CannotBuild if it is a link."""
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():
        raise CannotBuild(f"{path} is no directory: remove it")


def _build(release: Release, kernel: Kernel, lock: Path, directory: Path, say: Callable[[str], None]) -> Box:
    work, kept = directory / _WORK, directory / _KEPT
    shutil.rmtree(work, ignore_errors=True)
    check_room(shutil.disk_usage(directory).free, directory, ROOM, BOXES_VARIABLE)
    for path in (work, kept):
        make_private(path)
    try:
        time = root.source_date(int(kernel.image.stat().st_mtime))
        lines = root.sources(release)
        say(f"asking the mirrors what Debian {release.number} has")
        versions = root.versions(release, lines, work / "apt")
        made = planned(release, kernel, versions, lock, time)
        there = _there(directory, made)
        if there:
            return there
        return _make(made, lines, versions, lock, directory, say)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def planned(release: Release, kernel: Kernel, versions: list[str], lock: Path, time: int) -> BoxPlan:
    """Return the plan of a box for this machine: without KVM, its kernel does without what QEMU emulates wrongly."""
    options = EMULATED if without_kvm() else ""
    modules = sorted(path for path in kernel.modules.rglob("*") if path.is_file() and not path.is_symlink())
    names = [str(path.relative_to(kernel.modules)) for path in modules]
    files = [lock, kernel.image, *modules, image.INIT, *_BUILDERS]
    digest = content_digest([*versions, kernel.release, str(time), options, *names], files)
    return BoxPlan(release, kernel, digest, time, options)


def _there(directory: Path, made: BoxPlan) -> Box | None:
    """Return the box that has the planned content; None if it has another, or is not there."""
    path = directory / f"{made.name}.json"
    if not path.with_suffix(".box").is_file():
        return None
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        if json.loads(path.read_text())["reloadlab"]["digest"] == made.digest:
            return Box(made.name, path, made.kernel.release, built=False)
    return None


def _make(
    made: BoxPlan, lines: list[str], versions: list[str], lock: Path, directory: Path, say: Callable[[str], None]
) -> Box:
    """Build a box; its files appear when they are complete."""
    work, kept, release = directory / _WORK, directory / _KEPT, made.release

    def make_root(output: Path) -> None:
        say(f"installing {len(versions)} packages of Debian {release.number}")
        # mmdebstrap tells the format by the name.
        root.install(release, lines, work / "root.tar", work, time=made.time)
        (work / "root.tar").rename(output)

    def make_wheels(output: Path) -> None:
        say(f"downloading the packages of {lock.name} for Python {release.python}")
        root.download_wheels(release, lock, output)

    packages = root.cached(kept, f"root-{release.name}", [*versions, *lines, str(made.time)], make_root)
    wheels = root.cached(kept, f"wheels-{release.python}", [lock.read_text()], make_wheels)
    say(f"making a machine with Linux {made.kernel.release}")
    tree = work / "root"
    tree.mkdir()
    root.unpack(packages, tree)
    machine.make_machine(tree, "reloadlab", made.kernel, wheels, time=made.time)
    say("writing the disk")
    box = directory / f"{made.name}.box"
    image.write_box(made, tree, work / box.name, work)
    (work / box.name).chmod(0o644)
    (work / box.name).rename(box)
    path = box.with_suffix(".json")
    image.install(json.dumps(image.description(made, box), indent=2) + "\n", path)
    return Box(made.name, path, made.kernel.release, built=True)
