"""What can go wrong with a lab, each as one clear line, and the states that a lab can be in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from datapath.errors import ReloadlabError


class Status(StrEnum):
    """The state of a lab.

    Broken: its process was killed while it built, removed or used the lab, or its node.json cannot be read.
    Elsewhere: it was made in another mount namespace, and cannot be looked into from this one.
    """

    UP = "up"
    STARTING = "starting"
    STOPPING = "stopping"
    BROKEN = "broken"
    ELSEWHERE = "elsewhere"


class LabError(ReloadlabError):
    """Something that went wrong with a lab, `name`."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class LabExists(LabError):
    """A lab of that name is already there."""

    def __init__(self, name: str, status: Status) -> None:
        state = "exists already" if status is Status.UP else f"is {status}"
        if status is Status.ELSEWHERE:
            super().__init__(name, f"lab {name} exists already, in another mount namespace; choose another name")
        else:
            super().__init__(name, f"lab {name} {state}; to remove it: reloadlab down {name}")
        self.status = status


class NameTaken(LabError):
    """The name of a new lab is that of a cluster, or that of a new cluster is the name of a lab; `taken` says which."""

    def __init__(self, name: str, taken: str) -> None:
        super().__init__(name, f"{taken} exists already; choose another name, or remove it: reloadlab down {name}")


class NotALab(LabError):
    """A file or directory that has the place of a lab, but was not made by reloadlab."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name, f"{path} is not a lab: reloadlab leaves it alone; choose another name")
        self.path = path


class LabElsewhere(LabError):
    """A lab that was made in another mount namespace; `pid` is a process that lives in it, None if none is visible."""

    def __init__(self, name: str, pid: int | None) -> None:
        if pid is None:
            remedy = f"no process of it is visible; reloadlab down --force {name} removes the lab"
        else:
            remedy = f"use it from there: /usr/bin/nsenter --target {pid} --mount reloadlab ..."
        super().__init__(name, f"lab {name} was made in another mount namespace; {remedy}")
        self.pid = pid


class LabNotFound(LabError):
    """A lab that does not exist; `existing` are the labs that do."""

    def __init__(self, name: str, existing: tuple[str, ...]) -> None:
        near = get_close_matches(name, existing, n=1)
        there = f"the labs are: {', '.join(existing)}" if existing else "there are no labs; make one: reloadlab up"
        super().__init__(name, f"no lab {name}; {f'did you mean {near[0]}?' if near else there}")
        self.existing = existing


class LabNotReady(LabError):
    """The lab is there, but not complete; `reason` says what is wrong with its node.json, if anything is."""

    def __init__(self, name: str, status: Status, reason: str | None = None) -> None:
        why = f" ({reason})" if reason else ""
        remedy = f"; to remove it: reloadlab down {name}" if status is Status.BROKEN else "; try again in a moment"
        super().__init__(name, f"lab {name} is {status}{why}{remedy}")
        self.status = status
        self.reason = reason


class LabBusy(LabError):
    """Somebody uses, builds or removes the lab."""

    def __init__(self, name: str, pids: tuple[int, ...]) -> None:
        who = f"process {', '.join(map(_describe, pids))}" if pids else "another process"
        super().__init__(name, f"lab {name} is in use by {who}; reloadlab down --force removes it all the same")
        self.pids = pids


class UnsafeRun(ReloadlabError):
    """The directory of the labs belongs to another user, `owner`, or other users may write to it; see `mode`."""

    def __init__(self, path: Path, owner: int, mode: int) -> None:
        super().__init__(
            f"{path} holds labs, but others may change it (owner {owner}, mode {mode:04o}): "
            "it must be yours, writable by you alone"
        )
        self.path = path
        self.owner = owner
        self.mode = mode


class LabSystemError(LabError):
    """A system call that failed on the way; `errno` is kept."""

    def __init__(self, name: str, error: OSError) -> None:
        what = f"{error.filename}: " if error.filename else ""
        super().__init__(name, f"lab {name}: {what}{error.strerror}")
        self.errno = error.errno


@contextmanager
def system_errors(name: str) -> Iterator[None]:
    """Turn an OSError inside into a LabSystemError."""
    try:
        yield
    except OSError as error:
        raise LabSystemError(name, error) from error


def _describe(pid: int) -> str:
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return str(pid)
