"""The state of a lab, as its mark, its locks and its node.json tell it. Nothing is changed here.

The caller holds the lock of the run directory, so that no other process meets the probe of a lab's own lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from datapath.base.statefile import DamagedFile, WrongContent, read_json
from datapath.errors import ReloadlabError
from lab.errors import LabElsewhere, LabNotFound, LabNotReady, NotALab, Status
from lab.node import marks
from lab.node.facts import decode
from lab.node.topology import NodeFacts, NodeSpec

FACTS = "node.json"
REMOVED_FACTS = "node.json.removed"
BORROWED = "borrowed"
"""Says that a lab goes with the process that made it: without a holder of its lock it is left over."""


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab in a list. `pods`, `endpoint_routes` and `tunnel` are None where they are not known.

    `pids` are the processes that build, remove or use it at this moment. `reason` says why node.json cannot be read.
    """

    name: str
    status: Status
    pods: int | None = None
    endpoint_routes: bool | None = None
    tunnel: bool | None = None
    pids: tuple[int, ...] = ()
    reason: str | None = None

    @property
    def is_left_over(self) -> bool:
        """Whether a killed process has left the lab behind. One that only cannot be read may be of use to others."""
        return self.status is Status.BROKEN and self.reason is None


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells one node.json from the next: two of the same stamp have the same content."""

    path: Path
    inode: int
    size: int
    changed_ns: int


def stamp(root: Path) -> Stamp | None:
    """Return the stamp of a lab's node.json; None if it has none."""
    try:
        return _stamp(root / FACTS)
    except FileNotFoundError:
        return None


def read_facts(path: Path) -> tuple[NodeSpec, NodeFacts]:
    """Return the content of a node.json; WrongContent, with the name of the file, if it cannot be used."""
    return _decoded(_stamp(path))


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return Stamp(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=32)
def _decoded(which: Stamp) -> tuple[NodeSpec, NodeFacts]:
    try:
        spec, facts = decode(read_json(which.path))
    except DamagedFile as error:
        raise WrongContent(f"{which.path.name} is {error.reason}") from error
    except WrongContent as error:
        raise WrongContent(f"{which.path.name}: {error.reason}") from error
    if spec.name != which.path.parent.name:
        raise WrongContent(f"{which.path.name} is that of lab {spec.name}")
    return spec, facts


def status_of(root: Path) -> LabStatus:
    """Return the state of a lab; the caller holds the lock of the run directory."""
    if is_elsewhere(root):
        return LabStatus(root.name, Status.ELSEWHERE)
    descriptor = open_root(root)
    try:
        holders = holders_of(descriptor)
        locked = not try_lock(descriptor, fcntl.LOCK_SH)
        locked_by_owner = locked or not try_lock(descriptor, fcntl.LOCK_EX)
    finally:
        # A process that was forked meanwhile may have the descriptor too, and would keep the lock.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
    facts = facts_file(root)
    if facts is None:
        return LabStatus(root.name, Status.STARTING if locked else Status.BROKEN, pids=holders)
    left_over = facts.name != FACTS or (root / BORROWED).exists()
    status = Status.UP if facts.name == FACTS else Status.STOPPING
    if left_over and not (locked_by_owner if status is Status.UP else locked):
        status = Status.BROKEN
    try:
        spec, _ = read_facts(facts)
    except (WrongContent, OSError) as error:
        # What a killed process has left is that, whatever its facts look like.
        reason = None if status is Status.BROKEN else str(error)
        return LabStatus(root.name, Status.BROKEN, pids=holders, reason=reason)
    return LabStatus(root.name, status, len(spec.pod_specs), spec.endpoint_routes, spec.tunnel, holders)


def open_root(root: Path) -> int:
    """Open the directory of a lab, never by a link, and return the descriptor."""
    return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def is_elsewhere(root: Path) -> bool:
    """Tell whether a lab was made in another mount namespace, and its mount cannot be seen from this one."""
    mark = marks.read(root)
    return mark is not None and mark.is_elsewhere and not root.is_mount()


def not_ready(root: Path) -> ReloadlabError:
    """Return the error that says why a lab cannot be used; the caller holds the lock of the run directory."""
    check_mark(root)
    found = status_of(root)
    if found.status is Status.ELSEWHERE:
        mark = marks.read(root)
        return LabElsewhere(root.name, None if mark is None else next(mark.processes(), None))
    return LabNotReady(root.name, found.status, found.reason)


def check_mark(root: Path) -> None:
    """Raise LabNotFound if nothing has the name of a lab, NotALab if something else has it."""
    if not os.path.lexists(root):
        raise LabNotFound(root.name, marks.labs(root.parent))
    if marks.read(root) is None or root.is_symlink() or not root.is_dir():
        raise NotALab(root)


def facts_file(root: Path) -> Path | None:
    """Return the file that has a lab's facts, also one that is being removed; None before they are written."""
    return next((file for file in (root / FACTS, root / REMOVED_FACTS) if file.exists()), None)


def try_lock(descriptor: int, kind: int) -> bool:
    """Try to lock an open directory, without waiting; tell whether it worked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holders_of(descriptor: int) -> tuple[int, ...]:
    """Return the ids of the processes that hold a lock on an open directory, as /proc/locks tells them.

    That names who took the lock. If it has ended, those are returned to which it left the descriptor, its children.
    """
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids = set()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        # A line with -> in it is a process that waits.
        if fields[1] == "FLOCK" and fields[5] == wanted:
            pids.add(int(fields[4]))
    alive = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    if alive != pids:
        alive |= _heirs(wanted)
    return tuple(sorted(alive or pids))


def _heirs(wanted: str) -> set[int]:
    """Return the processes with a descriptor of a lock on this file, whoever took it: fdinfo has a line for each."""
    found = set()
    for fdinfo in Path("/proc").glob("[0-9]*/fdinfo"):
        try:
            texts = [(fdinfo / name).read_text() for name in os.listdir(fdinfo)]
        except OSError as error:
            # It has ended or closed one meanwhile, or not even root may look into it: then it is no child of ours.
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES):
                raise
            continue
        if any(line.startswith("lock:") and wanted in line.split() for text in texts for line in text.splitlines()):
            found.add(int(fdinfo.parent.name))
    return found
