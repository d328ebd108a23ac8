"""Where labs live: /run/reloadlab/<name>, a private tmpfs that holds everything of a lab. Claim, list, lock, remove.

    ns/<name>    network namespaces: node, health, outside, and one per pod
    bpf/         the node's own BPF file system
    state/       the endpoints' directories and the templates
    node.json    the facts of the node; written last: a lab without it is incomplete
    changes.lock held while the node and its facts are changed

Everything hangs on one mount: detaching it removes a lab at once, whatever state it is in. A mark beside the directory
says that it is a lab (lab.node.marks); what has no mark is left alone.

All locks are flock(2)'s, so that a killed process never leaves one behind. That of the run directory is held while a
lab is claimed, examined or detached, for milliseconds; that of a lab is held exclusively while it is built or removed,
shared while it is used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from datapath.base.names import check_lab_name
from datapath.base.statefile import WrongContent, write_json
from datapath.errors import ReloadlabError
from lab.errors import LabBusy, LabExists, Status, system_errors
from lab.node import marks, status
from lab.node.facts import encode
from lab.node.status import FACTS, LabStatus, Stamp
from lab.node.topology import NodeFacts, NodeSpec
from lab.system import mounts, netns
from lab.system.inhabitants import kill_inhabitants

RUN_VARIABLE = "RELOADLAB_RUN"
"""Environment variable that puts the labs elsewhere than into /run/reloadlab."""
DEFAULT_RUN = Path("/run/reloadlab")

NAMESPACES, BPFFS, STATE = "ns", "bpf", "state"
SHARED_NAMESPACE = "outside"
"""The one namespace that the nodes of a cluster have in common."""
_CHANGES_LOCK = "changes.lock"

DEFAULT_SIZE = "1g"
"""The most that a lab's files may take; an endpoint's objects are about 1 MB each."""


def run_directory() -> Path:
    """Return the directory of all labs."""
    return Path(os.environ.get(RUN_VARIABLE) or DEFAULT_RUN).absolute()


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
        (self.root / status.BORROWED).touch()
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
            if os.path.lexists(root):
                status.check_mark(root)
                raise LabExists(name, status.status_of(root).status)
            try:
                marks.add(root)
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


def write_facts(root: Path, spec: NodeSpec, facts: NodeFacts) -> None:
    """Write node.json, whole or not at all."""
    write_json(root / FACTS, encode(spec, facts))


def read_facts(name: str) -> tuple[NodeSpec, NodeFacts]:
    """Return the content of node.json. Raises LabNotFound, LabNotReady, LabElsewhere, NotALab, LabSystemError."""
    root = lab_root(name)
    with system_errors(name):
        with suppress(FileNotFoundError, WrongContent):
            if marks.read(root) is not None:
                return status.read_facts(root / FACTS)
        with _run_lock():
            raise status.not_ready(root)


def stamp(name: str) -> Stamp | None:
    """Return the stamp of a lab's node.json; None if it is missing."""
    return status.stamp(lab_root(name))


@contextmanager
def lock_shared(name: str) -> Iterator[None]:
    """Protect a complete lab from removal. Raises LabNotFound, LabNotReady, LabElsewhere, NotALab."""
    root = lab_root(name)
    with ExitStack() as stack:
        with system_errors(name), _run_lock():
            status.check_mark(root)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if status.status_of(root).status is not Status.UP or not status.try_lock(descriptor, fcntl.LOCK_SH):
                raise status.not_ready(root)
        yield


@contextmanager
def changing(name: str) -> Iterator[None]:
    """Exclude all other changes of a complete lab and its facts, in whatever process. Must not be nested.

    Raises what `lock_shared` raises.
    """
    with lock_shared(name), ExitStack() as stack:
        with system_errors(name):
            descriptor = os.open(lab_root(name) / _CHANGES_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def list_labs() -> tuple[LabStatus, ...]:
    """Return all labs, broken ones included, by name."""
    run = run_directory()
    if not run.exists():
        return ()
    with system_errors(str(run)), _run_lock():
        return tuple(status.status_of(run / name) for name in marks.labs(run))


def members(cluster: str) -> tuple[str, ...]:
    """Return the names of a cluster's nodes, in their order, those included whose facts cannot be read."""
    run, pattern = run_directory(), re.compile(rf"{re.escape(cluster)}-(\d+)")
    if not run.exists():
        return ()
    with system_errors(str(run)), _run_lock():
        numbers = {name: int(match[1]) for name in marks.labs(run) if (match := pattern.fullmatch(name))}
        return tuple(sorted((n for n in numbers if _cluster(run / n) in (cluster, None)), key=numbers.__getitem__))


def labs_of(name: str) -> tuple[str, ...]:
    """Return the labs that a name stands for: itself, or the nodes of the cluster of that name."""
    if lab_root(name).exists():
        return (name,)
    return members(name) or (name,)


def _cluster(root: Path) -> str | None:
    """Return the cluster of a lab, "" for one by itself; None if its facts cannot be read."""
    facts = status.facts_file(root)
    try:
        return None if facts is None else status.read_facts(facts)[0].cluster
    except WrongContent:
        return None


def remove(name: str, *, force: bool = False) -> None:
    """Remove a lab, whatever state it is in: kill what runs in its namespaces, detach its tree.

    Returns when the lab is out of sight; the kernel frees its links and namespaces behind us. With `force` also a lab
    that is in use, or was made in another mount namespace. Raises LabNotFound, LabBusy, LabElsewhere, NotALab,
    LabSystemError.
    """
    root = lab_root(name)
    with ExitStack() as stack:
        with system_errors(name), _run_lock():
            status.check_mark(root)
            if status.status_of(root).status is Status.ELSEWHERE and not force:
                raise status.not_ready(root)
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if not status.try_lock(descriptor, fcntl.LOCK_EX) and not force:
                raise LabBusy(name, status.holders_of(descriptor))
            # From here on the lab is incomplete, even if this process is killed.
            with suppress(FileNotFoundError):
                (root / FACTS).rename(root / status.REMOVED_FACTS)
        with system_errors(name):
            kill_inhabitants(_namespaces(_visible(root)))
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
    """Remove all labs; return (those removed, the first failure).

    Without `force`, those made in another mount namespace are left alone.
    """
    return remove_each([lab.name for lab in list_labs() if force or lab.status is not Status.ELSEWHERE], force=force)


def sweep() -> tuple[str, ...]:
    """Remove what killed processes have left over; return the names."""
    removed, error = remove_each([lab.name for lab in list_labs() if lab.is_left_over])
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


def _detach_ours(root: Path, descriptor: int) -> None:
    """Detach the lab whose root is open as `descriptor`, unless it is gone and maybe another has its name."""
    with _run_lock():
        if _same(root, descriptor):
            _detach(root)


def _detach(root: Path) -> None:
    """Detach a lab's tree. In other mount namespaces, if one has a copy of it, rmdir(2) does the same."""
    while root.is_mount():
        mounts.umount(root)
    with suppress(FileNotFoundError):
        root.rmdir()
    marks.remove(root)


def _visible(root: Path) -> Path:
    """Return the path of a lab's tree; of one in another mount namespace, as seen by a process that lives there."""
    mark = marks.read(root)
    if mark is None or not status.is_elsewhere(root):
        return root
    pid = next(mark.processes(), None)
    return root if pid is None else Path(f"/proc/{pid}/root{root}")


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
