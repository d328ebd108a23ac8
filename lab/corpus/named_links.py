"""Bugs of attaching by tcx: the way from tc and back, and links that have lost their pins."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from datapath.endpoint import Attachment
from datapath.kernel import hooks, links, tcx
from datapath.load.programs import Program
from datapath.reload.switchover import Attach
from datapath.reload.tcxlinks import TcxHook
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.steps import GAP, Telling, instead


@dataclass(frozen=True)
class AttachKeepingOthers(Telling, Attach):
    """Leaves the filter when it attaches by tcx, and the link when it attaches by tc: its old program runs first."""

    def _remove_others(self, work: Workspace, hook: TcxHook, program: Program) -> None:
        filters = hooks.filters(work.netlink, hook.ifindex, self.direction)
        left = hook.ours if self.attachment is Attachment.TC else [found for found in filters if found.is_ours]
        if left:
            self.applied()


@dataclass(frozen=True)
class AttachAfterOthers(Telling, Attach):
    """Removes what is attached the other way before it attaches."""

    def apply(self, work: Workspace) -> None:
        ifindex = work.netlink.ifindex(self.target)
        if self.attachment is Attachment.TCX:
            filters = [f for f in hooks.filters(work.netlink, ifindex, self.direction) if f.is_ours]
            for found in filters:
                hooks.detach(work.netlink, found)
            self._wait(bool(filters))
        else:
            ours = [p for p in tcx.programs(work.config.netns, ifindex, self.direction) if p.is_ours]
            for each in ours:
                links.detach(work.keep_open(links.fd_by_id(each.entry.link_id)))
            self._wait(bool(ours))
        super().apply(work)

    def _wait(self, removed: bool) -> None:
        if removed:
            self.applied()
            time.sleep(GAP)


@dataclass(frozen=True)
class AttachByPinsAlone(Telling, Attach):
    """Makes a link where it finds no pin, and does not ask the hook whether it has one."""

    def _look(self, work: Workspace, ifindex: int) -> TcxHook:
        found = super()._look(work, ifindex)
        if found.ours and not (self.links / self.program).exists():
            self.applied()
            return replace(found, present=())
        return found


FAULTS = (
    Fault(
        "B18-other-attachment-stays",
        "named",
        "leaves the filters when it attaches by tcx, or the link when it attaches by tc",
        change=instead({Attach: AttachKeepingOthers}),
        cites=("cilium issue 32228", "cilium issue 32337"),
        only=("attachment",),
    ),
    Fault(
        "B18-other-attachment-goes-first",
        "named",
        "removes what is attached by tc before it attaches by tcx, and the other way round",
        change=instead({Attach: AttachAfterOthers}),
        cites=("cilium issue 30103", "cilium issue 32228"),
        only=("attachment",),
    ),
    Fault(
        "B19-second-link",
        "named",
        "makes a second link where the pin of the first is lost, behind it",
        change=instead({Attach: AttachByPinsAlone}),
        cites=("cilium issue 47847", "cilium issue 44194"),
        only=("attachment",),
    ),
)
