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
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from datapath.base.names import check_lab_name
from datapath.base.statefile import WrongContent, write_json
from datapath.errors import LinkNotFound, ReloadlabError
from datapath.kernel.netlink import NetlinkSocket, link_down
from datapath.kernel.netns import NamespaceNotFound
from lab.errors import LabBusy, LabExists, LabNotFound, NameTaken, Status, UnsafeRun, system_errors
from lab.node import marks, status
from lab.node.facts import encode
from lab.node.status import FACTS, LabStatus, Stamp
from lab.node.topology import NODE, UPLINK, NodeFacts, NodeSpec
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
    """Return the directory of all labs; of a link, that which it leads to: rmdir(2) takes no link."""
    return Path(os.path.realpath(os.environ.get(RUN_VARIABLE) or DEFAULT_RUN))


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
        with _run_lock():
            # The kernel lets the one lock go before it takes the other.
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
def claim(name: str, size: str = DEFAULT_SIZE, *, cluster: str = "") -> Iterator[Claim]:
    """Make the directory of a new lab, which goes away again unless it is kept; `size` is tmpfs's option of that name.

    `cluster` is the cluster that the lab belongs to, empty for none. Raises LabExists, LabSystemError.
    """
    root = lab_root(name)
    with ExitStack() as stack, system_errors(name):
        with _run_lock():
            if os.path.lexists(root):
                status.check_mark(root)
                raise LabExists(name, status.status_of(root).status)
            try:
                marks.add(root, cluster)
                root.mkdir(mode=0o700)
                mounts.mount("tmpfs", root, mounts.MS_NOSUID | mounts.MS_NODEV, f"mode=0700,size={size}")
                descriptor = status.open_root(root)
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


def keep(name: str) -> None:
    """Let a lab stay that would have gone with its process: nobody sweeps it away. Its holder may let its lock go."""
    with system_errors(name), _run_lock():
        (lab_root(name) / status.BORROWED).unlink(missing_ok=True)


def write_facts(root: Path, spec: NodeSpec, facts: NodeFacts) -> None:
    """Write node.json, whole or not at all."""
    write_json(root / FACTS, encode(spec, facts))


def read_facts(name: str) -> tuple[NodeSpec, NodeFacts]:
    """Return the content of node.json. Raises LabNotFound, LabNotReady, LabElsewhere, NotALab, LabSystemError."""
    root = lab_root(name)
    with system_errors(name):
        with suppress(FileNotFoundError, WrongContent):
            if marks.read(root) is not None:
                _check_run(root.parent, root.parent.stat())
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
            descriptor = status.open_root(root)
            stack.callback(unlock, descriptor)
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
            stack.callback(unlock, descriptor)
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
    """Return the names of a cluster's nodes, in their order, as their marks tell: whatever state they are in."""
    run = run_directory()
    if not run.exists():
        return ()
    with system_errors(str(run)), _run_lock():
        found = [(name, marks.read(run / name)) for name in marks.labs(run)]
        nodes = [name for name, mark in found if mark is not None and mark.cluster == cluster]
        return tuple(sorted(nodes, key=_node_order))


def check_name(name: str, cluster: str) -> None:
    """Raise NameTaken for a lab called as a cluster is, or a cluster called as a lab is.

    Commands would take one for the other. Only of labs that stay: nobody names the others to a command.
    """
    if cluster and os.path.lexists(lab_root(cluster)):
        raise NameTaken(cluster, f"lab {cluster}")
    if nodes := members(name):
        raise NameTaken(name, f"a cluster {name}, of {', '.join(nodes)},")


def labs_of(name: str) -> tuple[str, ...]:
    """Return the labs that a name stands for: itself, or the nodes of the cluster of that name."""
    if lab_root(name).exists():
        return (name,)
    return members(name) or (name,)


def _node_order(name: str) -> tuple[int, str]:
    number = name.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0, name)


def remove(name: str, *, force: bool = False, held: int | None = None, left_over: bool = False) -> None:
    """Remove a lab, whatever state it is in: kill what runs in its namespaces, detach its tree.

    Returns when the lab is out of sight; the kernel frees its links and namespaces behind us. With `force` also a lab
    that is in use, or was made in another mount namespace. `held` is the descriptor that `keep_locked` returned, closed
    here whatever happens. With `left_over` only what a killed process has left; LabNotFound for another of that name.
    Raises LabNotFound, LabBusy, LabElsewhere, NotALab, LabSystemError.
    """
    root = lab_root(name)
    with ExitStack() as stack:
        if held is not None:
            stack.callback(os.close, held)
        with system_errors(name), _run_lock():
            if held is not None:
                # Not before: whoever sweeps would find the lab without a holder, and remove it beside us.
                fcntl.flock(held, fcntl.LOCK_UN)
            status.check_mark(root)
            found = status.status_of(root)
            if left_over and not found.is_left_over:
                raise LabNotFound(name, ())
            if found.status is Status.ELSEWHERE and not force:
                raise status.not_ready(root)
            descriptor = status.open_root(root)
            stack.callback(os.close, descriptor)
            if not status.try_lock(descriptor, fcntl.LOCK_EX) and not force:
                raise LabBusy(name, status.holders_of(descriptor))
            # From here on the lab is incomplete, even if this process is killed.
            with suppress(FileNotFoundError):
                (root / FACTS).rename(root / status.REMOVED_FACTS)
        with system_errors(name):
            tree = _visible(root)
            kill_inhabitants(_namespaces(tree))
            if _shares_underlay(tree):
                _cut_off(tree)
            _detach_ours(root, descriptor)


def remove_each(
    names: Iterable[str],
    *,
    force: bool = False,
    left_over: bool = False,
    ignoring: tuple[type[ReloadlabError], ...] = (),
) -> tuple[tuple[str, ...], ReloadlabError | None]:
    """Remove labs; return (those removed, the first failure): one that cannot be removed does not spare the others.

    What is in `ignoring` is not a failure. The other options are those of `remove`.
    """
    removed: list[str] = []
    failure: ReloadlabError | None = None
    for name in names:
        try:
            remove(name, force=force, left_over=left_over)
            removed.append(name)
        except ignoring:
            continue
        except ReloadlabError as error:
            failure = failure or error
    return tuple(removed), failure


def remove_all(*, force: bool = False) -> tuple[tuple[str, ...], ReloadlabError | None]:
    """Remove all labs; return (those removed, the first failure).

    Without `force`, those made in another mount namespace are left alone.
    """
    names = [lab.name for lab in list_labs() if force or lab.status is not Status.ELSEWHERE]
    # Another process may remove some of them at the same time.
    return remove_each(names, force=force, ignoring=(LabNotFound,))


def sweep() -> tuple[str, ...]:
    """Remove what killed processes have left over; return the names."""
    names = [lab.name for lab in list_labs() if lab.is_left_over]
    # Another process may have removed some of them, and made others of their names, or be about to.
    removed, error = remove_each(names, left_over=True, ignoring=(LabNotFound, LabBusy))
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
        try:
            _check_run(run, os.fstat(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock before may have removed the directory.
            same = _same(run, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if same:
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
            unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Let a lock go, and its descriptor: a process that was forked meanwhile may have that too, and keep the lock."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _check_run(run: Path, found: os.stat_result) -> None:
    """Refuse a directory in which another user could put something in the place of a lab."""
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise UnsafeRun(run, found.st_uid, found.st_mode & 0o7777)


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
    own = {netns.inode(Path("/proc/self/ns/net"))} | _underlays_of_others(root)
    try:
        # A namespace is a bind mount; a link could lead to that of a process that has nothing to do with the lab.
        found = {Path(entry.path).lstat().st_ino for entry in os.scandir(root / NAMESPACES)}
    except FileNotFoundError:
        return frozenset()
    return frozenset(found - own)


def _underlays_of_others(root: Path) -> set[int]:
    """Return the inode numbers of the underlays that other labs have."""
    found = set()
    for other in os.scandir(root.parent):
        if other.name != root.name and not other.is_symlink():
            with suppress(FileNotFoundError, NotADirectoryError):
                found.add((Path(other.path) / NAMESPACES / SHARED_NAMESPACE).lstat().st_ino)
    return found


def _shares_underlay(root: Path) -> bool:
    """Tell whether other nodes can still send to this one."""
    try:
        return (root / NAMESPACES / SHARED_NAMESPACE).lstat().st_ino in _underlays_of_others(root)
    except FileNotFoundError:
        return False


def _cut_off(root: Path) -> None:
    """Set a node's uplink down. With the tree its pins go, and with them the tail calls of what is attached still."""
    # A node that is half built may have neither.
    with suppress(NamespaceNotFound, LinkNotFound), NetlinkSocket(root / NAMESPACES / NODE) as socket:
        socket.request("cut the node off", link_down(socket.ifindex(UPLINK)))


def _same(path: Path, descriptor: int) -> bool:
    mine = os.fstat(descriptor)
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
