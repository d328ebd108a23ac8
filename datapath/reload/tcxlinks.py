"""Our links at a tcx hook: made, given another program, taken over, removed; each with its undo.

A link lives by its pin, `<directory>/<program>` (attachSKBProgram, pkg/datapath/loader/tcx.go). A pin can be lost (a
BPF file system mounted anew) while somebody holds the link: a second one would run behind it, and meet no packet
(cilium issue 47847). So the hook itself is asked for our links.

A link that was detached does not come back, and its place among those of others is lost. So the commit alone detaches
links: until then, the first of those that are to go runs the new program, or, where there is to be none, each passes
packets on. The commit detaches by a call of its own: the kernel frees the file of a pin later.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datapath.base.bpftypes import ProgType
from datapath.endpoint import DatapathConfig
from datapath.errors import BpfError, ReloadlabError
from datapath.kernel import bpf, linkpins, links, tcx
from datapath.kernel.hooks import OURS, Direction
from datapath.kernel.links import AttachType, LinkInfo
from datapath.kernel.netns import enter
from datapath.kernel.tcx import TcxProgram
from datapath.load.programs import Program
from datapath.reload import devicepins
from datapath.reload.filters import exists
from datapath.reload.sharedpins import is_of_another_device
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace

NOTHING = f"{OURS}nothing"
"""The name of the program that a link runs which is to go: it passes all packets on."""

_TCX_NEXT = -1
_KERNEL_NAME = 15  # characters of a program's name that the kernel keeps


class WithoutLink(ReloadlabError):
    """A program of ours that was attached to a tcx hook by no link: it can be neither updated nor pinned."""

    def __init__(self, ifname: str, direction: Direction, found: TcxProgram) -> None:
        super().__init__(f"{ifname} {direction}: {found} is attached by tcx without a link: detach it")
        self.ifname = ifname
        self.direction = direction


@dataclass(frozen=True)
class TcxHook:
    """A tcx hook of an interface of the node, and what it ran when a step began."""

    ifname: str
    ifindex: int
    direction: Direction
    attach_type: AttachType
    present: tuple[TcxProgram, ...]

    @property
    def ours(self) -> list[TcxProgram]:
        return [found for found in self.present if found.is_ours]


@dataclass(frozen=True)
class _Link:
    """A link, with a descriptor that is open until the reload ends."""

    fd: int
    info: LinkInfo


@dataclass(frozen=True)
class _Pinned(_Link):
    """A pinned link."""

    path: Path


def look(work: Workspace, ifname: str, ifindex: int, direction: Direction) -> TcxHook:
    """Return the hook; WithoutLink if it has a program of ours that nothing here can replace."""
    hook = TcxHook(ifname, ifindex, direction, *tcx.look(work.config.netns, ifindex, direction))
    for found in hook.ours:
        if not found.entry.link_id:
            raise WithoutLink(ifname, direction, found)
    return hook


def attach(work: Workspace, step: Step, hook: TcxHook, program: Program, path: Path) -> None:
    """Have the hook run a program of ours by one link, pinned at `path`; other links of ours go with the commit.

    A link that is there takes the program in one step: no packet meets the hook empty. A new one is put behind all.
    """
    pinned, ours = _open(work, path), _links(work, hook)
    if pinned is not None and (not ours or pinned.info.id != ours[0].info.id):
        # Its interface is gone or has another name by now, or another link runs before it.
        pinned = _exchange(work, step, pinned, ours)
    if not ours:
        _create(work, step, hook, program, path)
        return
    _update(work, step, hook, ours[0], program.fd, None if pinned is None else path)
    if pinned is None:
        work.on_undo(step, partial(linkpins.unpin, path))
        linkpins.pin(ours[0].fd, path)
    for each in ours[1:]:
        work.let_go("a second tcx link", partial(links.detach, each.fd))


def detach(
    work: Workspace,
    step: Step,
    hook: TcxHook,
    directory: Path,
    *,
    prefix: str = OURS,
    program: Program | None = None,
) -> None:
    """Have the commit remove our links from a hook, and their pins; pins of links whose interface is gone as well.

    Until then the first runs `program`, which the hook runs without them; if that is none, all pass packets on.
    """
    pinned = [
        found
        for found in _pins(work, directory)
        if found.path.name.startswith(prefix)
        and found.info.attach_type == hook.attach_type
        and not is_of_another_device(work, found.info, hook.ifindex, directory)
    ]
    ours = _links(work, hook, prefix)
    paths = {found.info.id: found.path for found in pinned}
    if program is None:
        for each in ours:
            _update(work, step, hook, each, _load_nothing(work), paths.get(each.info.id))
    elif ours:
        _update(work, step, hook, ours[0], program.fd, paths.get(ours[0].info.id))
    # The first comes last: those behind it run older programs.
    for each in reversed(ours):
        work.let_go("a tcx link", partial(links.detach, each.fd))
    for found in pinned:
        work.let_go(f"the pin {found.path}", partial(found.path.unlink, missing_ok=True))
    if directory.parent.exists():
        work.let_go(f"the directory {directory}", partial(linkpins.remove_empty, directory))


def warn_of_foreign(work: Workspace, hook: TcxHook, program: str, *, by_link: bool) -> None:
    """Name the programs of others that packets meet before ours: those before our link, or all before the filters."""
    for found in hook.present:
        if found.is_ours and by_link:
            break
        if not found.is_ours:
            work.warnings.append(tcx.runs_before(hook.ifname, hook.direction, found, program))


def remove_from(netns: Path, ifindex: int) -> None:
    """Detach our links from an interface, pinned or not. What goes meanwhile, with it perhaps, needs none."""
    for direction in Direction:
        for each in tcx.programs_if_there(netns, ifindex, direction):
            if each.is_ours and each.entry.link_id:
                _detach_by_id(each.entry.link_id)


def remove_others(config: DatapathConfig, keep: Collection[int]) -> list[int]:
    """Detach the links of endpoints that are not in `keep`, remove their pins, and return the endpoints' numbers.

    A link that one of the others has taken over, with the interface, goes on.
    """
    owners = map(linkpins.owner, linkpins.directories(config.endpoints_links))
    found = sorted(int(owner) for owner in owners if owner.isdecimal())
    others = [number for number in found if number not in keep]
    kept = {ident for number in found if number in keep for ident in linkpins.ids(config.endpoint_links(number))}
    for number in others:
        for ident in linkpins.ids(config.endpoint_links(number)) - kept:
            _detach_by_id(ident)
        linkpins.remove(config.endpoint_links(number))
    return others


def _detach_by_id(ident: int) -> None:
    try:
        fd = links.fd_by_id(ident)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    try:
        links.detach(fd)
    finally:
        os.close(fd)


def _open(work: Workspace, path: Path) -> _Pinned | None:
    fd = links.open_pin(path)
    return None if fd is None else _Pinned(work.keep_open(fd), links.info(fd), path)


def _pins(work: Workspace, directory: Path) -> list[_Pinned]:
    opened = (_open(work, path) for path in linkpins.pins(directory))
    return [found for found in opened if found is not None]


def _links(work: Workspace, hook: TcxHook, prefix: str = OURS) -> list[_Link]:
    """Open our links at a hook, in the order in which they run."""
    found = []
    for each in hook.ours:
        if each.name.startswith(prefix[:_KERNEL_NAME]):
            fd = work.keep_open(links.fd_by_id(each.entry.link_id))
            found.append(_Link(fd, links.info(fd)))
    return found


def _update(work: Workspace, step: Step, hook: TcxHook, link: _Link, program: int, path: Path | None) -> None:
    """Let a link run another program; `path` is where it is pinned."""
    old = work.keep_program(link.info.program_id)
    work.on_undo(step, partial(_update_back, work, hook, link.fd, old, path))
    links.update(link.fd, program)


def _exchange(work: Workspace, step: Step, pinned: _Pinned, ours: list[_Link]) -> _Pinned | None:
    """Let the first of our links at a hook take the place of one that is pinned there, with that one's pin or without.

    A link of a device that has changed its name stays pinned. Returns the link if it is pinned there now.
    """
    former = devicepins.find(work, ours[0].fd, pinned.path.name) if ours else None
    if former is None or devicepins.device(work, pinned.fd) in (None, step.target):
        devicepins.unpin(work, step, pinned.fd, pinned.path)
        return None
    devicepins.exchange(work, step, pinned.fd, pinned.path, ours[0].fd, former)
    return _Pinned(ours[0].fd, ours[0].info, pinned.path)


def _create(work: Workspace, step: Step, hook: TcxHook, program: Program, path: Path) -> None:
    # An interruption may come before the kernel's answer: what is undone is found at the hook.
    work.on_undo(step, partial(_remove_created, work, hook, program.id))
    with enter(work.config.netns):
        fd = work.keep_open(links.create(program.fd, hook.ifindex, hook.attach_type))
    # By itself: a link without a pin goes when this reload ends, also if the hook does not tell of it.
    work.on_undo(step, partial(linkpins.unpin, path))
    linkpins.pin(fd, path)


def _remove_created(work: Workspace, hook: TcxHook, program_id: int) -> None:
    for found in _now(work, hook):
        if found.entry.program_id == program_id and found.entry.link_id:
            fd = work.keep_open(links.fd_by_id(found.entry.link_id))
            links.detach(fd)


def _now(work: Workspace, hook: TcxHook) -> tuple[TcxProgram, ...]:
    return tcx.programs_if_there(work.config.netns, hook.ifindex, hook.direction)


def _load_nothing(work: Workspace) -> int:
    """Load a program that passes every packet on; a hook takes none twice, so each link has one of its own."""
    insns = struct.pack("<BBhi", 0xB7, 0, 0, _TCX_NEXT) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    program = bpf.prog_load(ProgType.SCHED_CLS, insns, "GPL", name=NOTHING)
    if program < 0:
        raise BpfError("BPF_PROG_LOAD", -program, f"{NOTHING}: {os.strerror(-program)}")
    return work.keep_open(program)


def _update_back(work: Workspace, hook: TcxHook, link: int, program: int, path: Path | None) -> None:
    """Let a link run its old program again; if somebody has detached it meanwhile, a new one in its place does.

    An interface that is gone took it from its hook: nothing to do.
    """
    try:
        links.update(link, program)
    except BpfError as error:
        if error.errno != errno.ENOLINK:
            raise
        if path is None or not exists(work, hook.ifindex):
            return
        with enter(work.config.netns):
            fd = work.keep_open(links.create(program, hook.ifindex, hook.attach_type))
        linkpins.replace(fd, path)
