"""Where labs live: /run/reloadlab/<name>, a private tmpfs that holds everything of a lab. Claim, list, lock, remove.

    ns/<name>    network namespaces: node, health, outside, and one per pod
    bpf/         the node's own BPF file system
    state/       the endpoints' directories and the templates
    node.json    the facts of the node; written last, so that a lab without it is no complete lab

Everything hangs on one mount: detaching it removes a lab at once, whatever state it is in.
Two locks, both flock(2), so that a killed process never leaves one behind: that of the run directory is held while a
lab is claimed, looked at or detached, for milliseconds; that of a lab is held exclusively while it is built or removed,
shared while it is used.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datapath.errors import ReloadlabError
from datapath.names import check_lab_name
from lab.errors import LabBusy, LabExists, LabNotFound, LabNotReady, LabSystemError, Status, system_errors
from lab.system import mounts, netns
from lab.system.inhabitants import kill_inhabitants

RUN_VARIABLE = "RELOADLAB_RUN"
"""Environment variable that puts the labs elsewhere than into /run/reloadlab."""
DEFAULT_RUN = Path("/run/reloadlab")

NAMESPACES, BPFFS, STATE, FACTS = "ns", "bpf", "state", "node.json"
SHARED_NAMESPACE = "outside"
"""The one namespace that the nodes of a cluster have in common."""
_REMOVED_FACTS = "node.json.removed"
_BORROWED = "borrowed"
"""Marks a lab that goes with the process that made it: without a holder of its lock it is left over."""

DEFAULT_SIZE = "1g"
"""The most that a lab's files may take; an endpoint's objects are about 1 MB each."""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab in a list. `pods`, `endpoint_routes` and `tunnel` are None where they are not known.

    `pids` are the processes that build, remove or use it at this moment.
    """

    name: str
    status: Status
    pods: int | None = None
    endpoint_routes: bool | None = None
    tunnel: bool | None = None
    pids: tuple[int, ...] = ()


def run_directory() -> Path:
    """Return the directory of all labs."""
    return Path(os.environ.get(RUN_VARIABLE) or DEFAULT_RUN)


def lab_root(name: str) -> Path:
    """Return the directory of a lab; InvalidName if it cannot be one."""
    return run_directory() / check_lab_name(name)


class Claim:
    """A lab in the making: its directory, and its lock, held exclusively."""

    def __init__(self, root: Path, descriptor: int) -> None:
        self.root = root
        self._descriptor = descriptor
        self._kept = False

    def keep(self) -> None:
        """The lab is complete and stays."""
        self._kept = True

    def keep_locked(self) -> int:
        """The lab is complete; return a descriptor that holds its lock, shared. Once it is closed the lab is broken."""
        (self.root / _BORROWED).touch()
        held = os.dup(self._descriptor)
        fcntl.flock(held, fcntl.LOCK_SH)
        self._kept = True
        return held

    def release(self) -> None:
        """Let the lock go; the lab goes as well unless it was kept."""
        try:
            if not self._kept:
                _detach_ours(self.root, self._descriptor)
        finally:
            os.close(self._descriptor)


@contextmanager
def claim(name: str, size: str = DEFAULT_SIZE) -> Iterator[Claim]:
    """Make the directory of a new lab, which goes away again unless it is kept; `size` is tmpfs's option of that name.

    Raises LabExists, LabSystemError.
    """
    root = lab_root(name)
    with ExitStack() as stack, system_errors(name):
        with _run_lock():
            if root.exists():
                raise LabExists(name, _status(root).status)
            try:
                root.mkdir(mode=0o700)
                mounts.mount("tmpfs", root, mounts.MS_NOSUID | mounts.MS_NODEV, f"mode=0700,size={size}")
                descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                claimed = Claim(root, descriptor)
                stack.callback(claimed.release)
                for directory in (NAMESPACES, BPFFS, STATE):
                    (root / directory).mkdir(mode=0o700)
                mounts.mount("bpf", root / BPFFS, mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC, "mode=0700")
            except BaseException:
                _detach(root)
                raise
        yield claimed


def write_facts(root: Path, facts: dict[str, Any]) -> None:
    """Write node.json, whole or not at all."""
    unfinished = root / f".{FACTS}"
    unfinished.write_text(json.dumps(facts))
    unfinished.replace(root / FACTS)


def read_facts(name: str) -> dict[str, Any]:
    """Return the content of node.json; LabNotFound or LabNotReady if there is none."""
    root = lab_root(name)
    try:
        return dict(json.loads((root / FACTS).read_text()))
    except FileNotFoundError:
        with system_errors(name), _run_lock():
            if not root.exists():
                raise LabNotFound(name, _names()) from None
            raise LabNotReady(name, _status(root).status) from None
    except OSError as error:
        raise LabSystemError(name, error) from error


@contextmanager
def lock_shared(name: str) -> Iterator[None]:
    """Hold a complete lab: nobody removes it meanwhile. Raises LabNotFound, LabNotReady."""
    with ExitStack() as stack:
        with system_errors(name), _run_lock():
            root = lab_root(name)
            if not root.exists():
                raise LabNotFound(name, _names())
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            status = _status(root).status
            if status is not Status.UP or not _try_lock(descriptor, fcntl.LOCK_SH):
                raise LabNotReady(name, status)
        yield


def list_labs() -> tuple[LabStatus, ...]:
    """Return all labs, broken ones included, by name."""
    run = run_directory()
    if not run.exists():
        return ()
    with system_errors(str(run)), _run_lock():
        return tuple(_status(run / name) for name in _names())


def members(cluster: str) -> tuple[str, ...]:
    """Return the names of a cluster's nodes, in their order, those included of which too little is left to tell."""
    run, pattern = run_directory(), re.compile(rf"{re.escape(cluster)}-(\d+)")
    if not run.exists():
        return ()
    with system_errors(str(run)), _run_lock():
        numbers = {name: int(match[1]) for name in _names() if (match := pattern.fullmatch(name))}
        return tuple(sorted((n for n in numbers if _cluster(run / n) in (cluster, None)), key=numbers.__getitem__))


def labs_of(name: str) -> tuple[str, ...]:
    """Return the labs that a name stands for: itself, or the nodes of the cluster of that name."""
    if lab_root(name).exists():
        return (name,)
    return members(name) or (name,)


def _cluster(root: Path) -> str | None:
    """Return the cluster of a lab, "" for one by itself; None if it does not say, being incomplete."""
    facts = next((f for f in (root / FACTS, root / _REMOVED_FACTS) if f.exists()), None)
    return None if facts is None else str(json.loads(facts.read_text())["spec"].get("cluster", ""))


def remove(name: str, *, force: bool = False) -> None:
    """Remove a lab, whatever state it is in: kill what runs in its namespaces, detach its tree.

    Returns when the lab is out of sight; the kernel frees its links and namespaces behind us. With `force` also a lab
    that is in use. Raises LabNotFound, LabBusy, LabSystemError.
    """
    root = lab_root(name)
    with ExitStack() as stack:
        with system_errors(name), _run_lock():
            if not root.exists():
                raise LabNotFound(name, _names())
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if not _try_lock(descriptor, fcntl.LOCK_EX) and not force:
                raise LabBusy(name, _holders(descriptor))
            # From here on the lab is no complete one, also if we are killed.
            with suppress(FileNotFoundError):
                (root / FACTS).rename(root / _REMOVED_FACTS)
        with system_errors(name):
            kill_inhabitants(_namespaces(root))
            _detach_ours(root, descriptor)


def remove_each(names: Iterable[str], *, force: bool = False) -> tuple[tuple[str, ...], ReloadlabError | None]:
    """Remove labs; return (those removed, the first failure): one that cannot be removed does not spare the others."""
    removed: list[str] = []
    failure: ReloadlabError | None = None
    for name in names:
        try:
            remove(name, force=force)
            removed.append(name)
        except ReloadlabError as error:
            failure = failure or error
    return tuple(removed), failure


def remove_all(*, force: bool = False) -> tuple[tuple[str, ...], ReloadlabError | None]:
    """Remove all labs; return (those removed, the first failure)."""
    return remove_each([lab.name for lab in list_labs()], force=force)


def sweep() -> tuple[str, ...]:
    """Remove what killed processes have left over; return the names."""
    broken = [lab.name for lab in list_labs() if lab.status is Status.BROKEN]
    removed, error = remove_each(broken)
    if error is not None:
        raise error
    return removed


@contextmanager
def _run_lock() -> Iterator[None]:
    """Hold the lock of the run directory, made where it is missing, removed where nothing is left in it."""
    run = run_directory()
    while True:
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held the lock before may have removed the directory.
        if _same(run, descriptor):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        try:
            run.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise
        finally:
            os.close(descriptor)


def _status(root: Path) -> LabStatus:
    """Return how a lab is; the caller holds the lock of the run directory: the probe of the lab's disturbs nobody."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        holders = _holders(descriptor)
        locked = not _try_lock(descriptor, fcntl.LOCK_SH)
        locked_by_owner = locked or not _try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)
    facts = next((f for f in (root / FACTS, root / _REMOVED_FACTS) if f.exists()), None)
    if facts is None:
        return LabStatus(root.name, Status.STARTING if locked else Status.BROKEN, pids=holders)
    spec = json.loads(facts.read_text())["spec"]
    status = Status.UP if locked_by_owner or not (root / _BORROWED).exists() else Status.BROKEN
    if facts.name != FACTS:
        status = Status.STOPPING if locked else Status.BROKEN
    return LabStatus(root.name, status, len(spec["pods"]), spec["endpoint_routes"], spec["tunnel"], holders)


def _names() -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(run_directory()) if entry.is_dir(follow_symlinks=False)))


def _detach_ours(root: Path, descriptor: int) -> None:
    """Detach the lab whose root is open as `descriptor`, unless it is gone and maybe another has its name."""
    with _run_lock():
        if _same(root, descriptor):
            _detach(root)


def _detach(root: Path) -> None:
    """Take a lab's tree away. In other mount namespaces, if one has a copy of it, rmdir(2) does the same."""
    while root.is_mount():
        mounts.umount(root)
    with suppress(FileNotFoundError):
        root.rmdir()


def _namespaces(root: Path) -> frozenset[int]:
    """Return the inode numbers of a lab's namespaces; of one not mounted yet, a file's: no process's.

    Never our own, and not the underlay while another node of the cluster has it.
    """
    own = {netns.inode(Path("/proc/self/ns/net"))}
    for other in os.scandir(root.parent):
        if other.name != root.name:
            with suppress(FileNotFoundError, NotADirectoryError):
                own.add(netns.inode(Path(other.path) / NAMESPACES / SHARED_NAMESPACE))
    try:
        found = {netns.inode(Path(entry.path)) for entry in os.scandir(root / NAMESPACES)}
    except FileNotFoundError:
        return frozenset()
    return frozenset(found - own)


def _same(path: Path, descriptor: int) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(descriptor: int) -> tuple[int, ...]:
    """Return the ids of the processes that hold a lock on an open directory, as /proc/locks tells them."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        # A line with -> in it is one who waits.
        if fields[1] == "FLOCK" and fields[5] == wanted:
            pids.add(int(fields[4]))
    return tuple(sorted(pids))
