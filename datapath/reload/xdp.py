"""The steps of a reload at XDP: attach to a device, remove from what is none any more (pkg/datapath/loader/xdp.go).

A program is held by a link, which is pinned below cilium/devices on the node's bpffs; the next reload updates that
link. Where the kernel has no links for XDP (before Linux 5.9), or a program of ours was attached without one, it is
replaced by netlink. Either way packets meet the old program or the new one. A change of the mode is the exception:
the kernel takes no program in one mode while one is attached in the other.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from datapath.endpoint import XdpMode
from datapath.errors import BpfError, LinkNotFound, LinkReplaced, NetlinkError, ReloadlabError, printable
from datapath.kernel import linkpins, links, xdp
from datapath.kernel.inventory import program_name
from datapath.kernel.links import AttachType
from datapath.kernel.netns import enter
from datapath.kernel.xdp import Attached, Mode
from datapath.reload import devicepins, outcome
from datapath.reload.filters import exists
from datapath.reload.outcome import XDP_DIRECTION
from datapath.reload.sharedpins import is_of_another_device
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace

CIL_XDP_ENTRY = "cil_xdp_entry"
OURS = "cil_xdp"
"""Prefix of the programs that are ours (DetachXDP)."""
_UNSUPPORTED = {
    errno.EOPNOTSUPP: "its driver cannot",
    errno.ERANGE: "its MTU is too large",
    errno.ENOSPC: "it has too few queues",
}
"""Why drivers refuse a native program (drivers/net/veth.c: veth_xdp_set)."""


class XdpTaken(ReloadlabError):
    """Somebody else's program is attached where ours would go; `program_id` is the kernel's."""

    def __init__(self, ifname: str, mode: Mode, program: str, program_id: int, *, linked: bool) -> None:
        held = "held by a link that its owner must detach" if linked else "remove it first (ip link set ... xdp off)"
        super().__init__(
            f"{printable(ifname)}: {mode} XDP has the program {program} (id {program_id}), which is not ours: {held}"
        )
        self.ifname = ifname
        self.program_id = program_id


class XdpUnsupported(ReloadlabError):
    """A device that takes no native XDP program."""

    def __init__(self, ifname: str, reason: str) -> None:
        super().__init__(f"{printable(ifname)} takes no native XDP program, {reason}: choose generic or best-effort")
        self.ifname = ifname


@dataclass(frozen=True)
class AttachXdp(Step):
    """Replace an interface's XDP program, or attach the first one; `path` is where its object is published."""

    object: str
    mode: XdpMode
    ifindex: int  # the object is not for an interface that took the name since
    path: Path

    name = "attach xdp"

    def describe(self) -> str:
        return f"attach {CIL_XDP_ENTRY} of {self.object} to XDP of {self.target}, {self.mode}"

    def apply(self, work: Workspace) -> None:
        program = work.objects[self.object].collection.programs[CIL_XDP_ENTRY]
        new = Attached(Mode.GENERIC if self.mode == "generic" else Mode.NATIVE, program.id)
        found = work.netlink.ifindex(self.target)
        if found != self.ifindex:
            raise LinkReplaced(self.target, found, self.ifindex)
        hook = _Hook.of(work, self, found)
        hook.refuse_foreign()
        ours = hook.ours()
        if ours is not None and ours.mode == new.mode:
            hook.exchange(ours, new, program.fd)
        else:
            if ours is not None:
                hook.take_off(ours)
            try:
                hook.attach(new, program.fd)
            except (BpfError, NetlinkError) as error:
                if error.errno not in _UNSUPPORTED or new.mode is not Mode.NATIVE:
                    raise
                if self.mode != "best-effort":
                    raise XdpUnsupported(self.target, _UNSUPPORTED[error.errno]) from error
                hook.unpin()
                self._leave_out(work, _UNSUPPORTED[error.errno])
                return
            if ours is not None:
                said = f"its XDP mode changed from {ours.mode} to {new.mode}, which the kernel does not do in one step"
                work.warnings.append(f"device {self.target} had no XDP program for a moment: {said}")
        work.attached[self.key] = outcome.Attached(self.target, XDP_DIRECTION, CIL_XDP_ENTRY, program.id)

    def _leave_out(self, work: Workspace, reason: str) -> None:
        """Have the commit remove what only the device's program would use: its calls map and its object."""
        work.warnings.append(f"device {self.target} takes no native XDP program, {reason}: left out")
        unused = work.objects[self.object]
        unused.loaded = None
        for path in (*(work.config.globals / name for name in unused.own_maps), self.path):
            work.let_go(path.name, partial(path.unlink, missing_ok=True))


@dataclass(frozen=True)
class DetachXdp(Step):
    """Remove our XDP program from an interface, and its pinned link; those of others stay."""

    name = "detach xdp"

    def describe(self) -> str:
        return f"remove programs {OURS}* from XDP of {self.target}"

    def apply(self, work: Workspace) -> None:
        try:
            ifindex = work.netlink.ifindex(self.target)
        except LinkNotFound:
            ifindex = 0
        hook = _Hook.of(work, self, ifindex)
        ours = hook.ours()
        if ours is not None:
            hook.take_off(ours)
        if not hook.is_taken:
            hook.unpin()


@dataclass(frozen=True)
class _Hook:
    """An interface's XDP hook as a step finds it, and what can be done with it; all of that can be undone.

    `ifindex` is 0 if there is no such interface. `pinned` is the descriptor of the pinned link, and `link` that of the
    same if it holds the program that is attached.
    """

    work: Workspace
    step: Step
    ifindex: int
    pin: Path
    found: tuple[Attached, ...]
    pinned: int | None
    link: int | None

    @classmethod
    def of(cls, work: Workspace, step: Step, ifindex: int) -> _Hook:
        pin = work.config.device_links(step.target) / CIL_XDP_ENTRY
        found = _attached(work, ifindex) if ifindex else ()
        pinned = devicepins.open_pinned(work, pin)
        hook = cls(work, step, ifindex, pin, found, pinned, None)
        if pinned is not None and hook._holds(pinned):
            return replace(hook, link=pinned)
        return hook._with_former_pin() if found else hook

    @property
    def is_taken(self) -> bool:
        """Whether the pin is of another device, whose name differs in a dot alone."""
        if self.pinned is None:
            return False
        return is_of_another_device(self.work, links.info(self.pinned), self.ifindex, self.pin.parent)

    def _holds(self, link: int) -> bool:
        held = links.info(link)
        return held.ifindex == self.ifindex and held.program_id in {each.program_id for each in self.found}

    def _with_former_pin(self) -> _Hook:
        """Take over the link of an interface that was renamed: its pin has the former name."""
        for directory in linkpins.directories(self.work.config.devices_links):
            former = directory / CIL_XDP_ENTRY
            link = devicepins.open_pinned(self.work, former)
            if link is not None and self._holds(link):
                if self.is_taken:
                    return replace(self, pin=former, pinned=link, link=link)
                if self.pinned is not None and devicepins.device(self.work, self.pinned) is not None:
                    devicepins.exchange(self.work, self.step, self.pinned, self.pin, link, former)
                else:
                    if self.pinned is not None:
                        devicepins.unpin(self.work, self.step, self.pinned, self.pin)
                    devicepins.move(self.work, self.step, former, self.pin)
                return replace(self, pinned=link, link=link)
        return self

    def ours(self) -> Attached | None:
        """Return the program that is ours."""
        return next((each for each in self.found if self._is_ours(each)), None)

    def refuse_foreign(self) -> None:
        """Raise XdpTaken for a program of somebody else; one that has gone meanwhile is in nobody's way."""
        for each in self.found:
            name = _name(each)
            if name is not None and not self._is_ours(each):
                linked = self._is_linked(each)
                raise XdpTaken(self.step.target, each.mode, name, each.program_id, linked=linked)

    def _is_ours(self, each: Attached) -> bool:
        if each.mode is Mode.OFFLOADED:
            return False
        if self.link is not None:
            return True
        return (_name(each) or "").startswith(OURS) and not self._is_linked(each)

    def _is_linked(self, each: Attached) -> bool:
        link = xdp.link_of(self.ifindex, each.program_id)
        if link is not None:
            os.close(link)
        return link is not None

    def exchange(self, old: Attached, new: Attached, program_fd: int) -> None:
        """Let the new program run in the place of the old one: no packet meets the hook empty."""
        old_fd = self.work.keep_program(old.program_id)
        self.work.on_undo(self.step, partial(self._swap, old, new, old_fd, program_fd))
        self._run(old.mode, program_fd, old_fd)

    def take_off(self, old: Attached) -> None:
        """Remove the program; the pin of its link, which holds nothing then, stays."""
        old_fd = self.work.keep_program(old.program_id)
        self.work.on_undo(self.step, partial(self._put_back, old, old_fd))
        if self.link is None:
            xdp.detach(self.work.netlink, self.ifindex, old.mode, expected_fd=old_fd)
        else:
            links.detach(self.link)

    def attach(self, new: Attached, program_fd: int) -> None:
        """Attach the first program, by a link that is then pinned, or by netlink where the kernel has no such links."""
        self.work.on_undo(self.step, partial(self._take_away, new, program_fd))
        try:
            link = self._create(new.mode, program_fd)
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise
            xdp.attach(self.work.netlink, self.ifindex, new.mode, program_fd)
            self.unpin()
            return
        if self.pinned is not None:
            devicepins.unpin(self.work, self.step, self.pinned, self.pin)
        self.work.on_undo(self.step, partial(linkpins.unpin, self.pin))
        linkpins.pin(link, self.pin)

    def unpin(self) -> None:
        """Remove the pin of a link that is of no use any more, and the directories that are empty then."""
        if self.pinned is not None:
            devicepins.unpin(self.work, self.step, self.pinned, self.pin)
        if self.pinned is not None or not self.ifindex:
            linkpins.remove_empty(self.pin.parent)

    def _create(self, mode: Mode, program_fd: int) -> int:
        with enter(self.work.config.netns):
            return self.work.keep_open(links.create(program_fd, self.ifindex, AttachType.XDP, flags=mode))

    def _run(self, mode: Mode, program_fd: int, expected_fd: int) -> None:
        if self.link is not None:
            links.update(self.link, program_fd)
        else:
            xdp.replace(self.work.netlink, self.ifindex, mode, program_fd, expected_fd=expected_fd)

    def _runs(self, wanted: Attached) -> bool:
        return wanted in _attached(self.work, self.ifindex)

    def _swap(self, old: Attached, new: Attached, old_fd: int, new_fd: int) -> None:
        """Undo `exchange`, which may not have come to it. What somebody else has removed meanwhile is put back."""
        if self._runs(new):
            self._run(new.mode, old_fd, new_fd)
        else:
            self._put_back(old, old_fd)

    def _put_back(self, old: Attached, old_fd: int) -> None:
        """Undo `take_off`, which may not have come to it. An interface that is gone needs no program."""
        if self._runs(old):
            return
        try:
            if self.link is None:
                xdp.attach(self.work.netlink, self.ifindex, old.mode, old_fd)
                return
            link = self._create(old.mode, old_fd)
        except (BpfError, NetlinkError) as error:
            # To make a link of XDP without the interface is EINVAL (bpf_xdp_link_attach).
            if error.errno not in (errno.ENODEV, errno.EINVAL) or exists(self.work, self.ifindex):
                raise
            return
        linkpins.replace(link, self.pin)

    def _take_away(self, new: Attached, program_fd: int) -> None:
        """Undo `attach`, which may not have come to it."""
        if not self._runs(new):
            return
        link = xdp.link_of(self.ifindex, new.program_id)
        if link is None:
            xdp.detach(self.work.netlink, self.ifindex, new.mode, expected_fd=program_fd)
            return
        try:
            links.detach(link)
        finally:
            os.close(link)


def _attached(work: Workspace, ifindex: int) -> tuple[Attached, ...]:
    """Return what an interface runs at XDP; nothing if it is gone."""
    try:
        return xdp.attached(work.netlink, ifindex)
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return ()


def _name(found: Attached) -> str | None:
    """Return the name of a program that was found at a hook; None if it is gone by now."""
    try:
        return program_name(found.program_id)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
