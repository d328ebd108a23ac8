"""Named faults of a loader that concern what packets meet: policy slots, filters, routes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from datapath.errors import LinkNotFound
from datapath.kernel import hooks, routes
from datapath.kernel.hooks import Filter, HookTaken
from datapath.kernel.netlink import NetlinkSocket
from datapath.reload.prepare import FillArrays, LoadPrograms
from datapath.reload.step import Plan
from datapath.reload.switchover import Attach, Commit, Detach, InsertPolicy, InstallRoutes, RemoveRoutes
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.halves import keep_obsolete
from lab.corpus.named_plans import moved_before
from lab.corpus.steps import Telling, each_of, instead


@dataclass(frozen=True)
class AttachBeside(Telling, Attach):
    """Leaves former filters of ours at other priorities and handles."""

    def _remove_stale(self, netlink: NetlinkSocket, ours: Sequence[Filter]) -> None:
        if any((stale.priority, stale.handle) != (self.priority, hooks.HANDLE) for stale in ours):
            self.applied()


@dataclass(frozen=True)
class AttachOver(Telling, Attach):
    """Replaces whatever filter sits where ours belongs."""

    def _refuse_foreign(self, present: Sequence[Filter]) -> None:
        try:
            super()._refuse_foreign(present)
        except HookTaken:
            self.applied()

    def _replaces(self, present: Sequence[Filter]) -> bool:
        return True


@dataclass(frozen=True)
class AttachAlone(Telling, Attach):
    """Takes a filter of another chain for one that is in its way."""

    def apply(self, work: Workspace) -> None:
        for found in hooks.all_filters(work.netlink, work.netlink.ifindex(self.target), self.direction):
            if found.chain and found.priority == self.priority:
                self.applied()
                raise HookTaken(self.target, found)
        super().apply(work)


@dataclass(frozen=True)
class AttachUndotted(Telling, Attach):
    """Makes a directory for the interface on the BPF file system, which takes no dot in a name."""

    def apply(self, work: Workspace) -> None:
        if "." in self.target:
            self.applied()
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(work.config.bpffs / self.target))
        super().apply(work)


@dataclass(frozen=True)
class AttachIfThere(Telling, Attach):
    """Calls an interface that is gone a success."""

    def apply(self, work: Workspace) -> None:
        try:
            super().apply(work)
        except LinkNotFound:
            self.applied()


@dataclass(frozen=True)
class InstallIfThere(Telling, InstallRoutes):
    """The same for its routes."""

    def apply(self, work: Workspace) -> None:
        try:
            super().apply(work)
        except LinkNotFound:
            self.applied()


@dataclass(frozen=True)
class RemoveIfThere(Telling, RemoveRoutes):
    """The same for routes that are to go."""

    def apply(self, work: Workspace) -> None:
        try:
            super().apply(work)
        except LinkNotFound:
            self.applied()


@dataclass(frozen=True)
class DetachIfThere(Telling, Detach):
    """The same for filters."""

    def apply(self, work: Workspace) -> None:
        try:
            super().apply(work)
        except LinkNotFound:
            self.applied()


@dataclass(frozen=True)
class DetachUndotted(Telling, Detach):
    """Does not find an interface with a dot in its name."""

    def apply(self, work: Workspace) -> None:
        if "." in self.target:
            self.applied()
        else:
            super().apply(work)


@dataclass(frozen=True)
class DetachEverybody(Telling, Detach):
    """Removes all filters of a hook, whoever attached them."""

    def apply(self, work: Workspace) -> None:
        super().apply(work)
        try:
            present = hooks.filters(work.netlink, work.netlink.ifindex(self.target), self.direction)
        except LinkNotFound:
            return
        # Handle 0 stands for all filters of a priority.
        for found in {each.priority: each for each in present}.values():
            hooks.detach(work.netlink, replace(found, handle=0))
            self.applied()


@dataclass(frozen=True)
class RemoveOwnRoutes(RemoveRoutes):
    """Removes only routes of the protocol that this loader writes."""

    def apply(self, work: Workspace) -> None:
        for route in routes.endpoint_routes(self.endpoint, work.netlink.ifindex(self.target)):
            if routes.through(work.netlink, route):
                work.on_undo(self, partial(routes.upsert, work.netlink, route))
            routes.remove(work.netlink, route)


@dataclass(frozen=True)
class CommitKeepingSlots(Commit):
    """Leaves the policy slot of an endpoint whose new object has no program for it."""

    def _clear_policy(self, work: Workspace) -> None:
        return


def policy_slot_before_calls(plan: Plan) -> Plan:
    """Publish the policy program before its tail calls are in their slots (cilium issue 29307)."""
    return moved_before(
        plan,
        InsertPolicy,
        lambda step, other: type(other) is FillArrays and other.target == step.target,
    )


def policy_slot_after_attach(plan: Plan) -> Plan:
    """Attach before the policy program is in its slot (cilium issue 29476)."""
    return moved_before(plan, InsertPolicy, lambda _, other: isinstance(other, Commit))


def detach_first(plan: Plan) -> Plan:
    """Remove the egress program before the new one is loaded, as at the reference commit."""
    return moved_before(plan, Detach, lambda _, other: isinstance(other, LoadPrograms))


forget_obsolete = each_of(Commit, keep_obsolete)
"""Leave the calls map and the object of a device that is gone, or no device any more."""

miss_no_interface = instead(
    {InstallRoutes: InstallIfThere, RemoveRoutes: RemoveIfThere, Detach: DetachIfThere, Attach: AttachIfThere}
)
"""Go on without the interface, wherever it is found to be gone (cilium issue 32689)."""


FAULTS = (
    Fault(
        "B13-policy-slot-before-calls",
        "named",
        "puts the policy program into its slot before the calls map that it jumps through is filled",
        change=policy_slot_before_calls,
        cites=("cilium issue 27720", "cilium issue 29307", "cilium issue 33156"),
        only=("hitless",),
    ),
    Fault(
        "B14-attach-before-policy-slot",
        "named",
        "attaches everything before the policy program is in its slot",
        change=policy_slot_after_attach,
        cites=("cilium issue 29476", "cilium issue 30248"),
        only=("hitless", "pods", "builds", "policy_reload"),
    ),
    Fault(
        "B17-filters-of-two-priorities",
        "named",
        "leaves the filter of the former priority, which runs first and hides the new one",
        change=instead({Attach: AttachBeside}),
        cites=("cilium issue 36172",),
        only=("filters",),
    ),
    Fault(
        "B21-no-dots-in-pins",
        "named",
        "cannot load the programs of a device with a dot in its name",
        change=instead({Attach: AttachUndotted}),
        cites=("cilium issue 31813", "cilium issue 32090"),
        only=("filters",),
    ),
    Fault(
        "B21-filters-of-dotted-devices-stay",
        "named",
        "does not find a device with a dot in its name when its programs are to go",
        change=instead({Detach: DetachUndotted}),
        cites=("cilium issue 18344", "cilium issue 18394"),
        only=("filters",),
    ),
    Fault(
        "B22-overwrite-foreign-filter",
        "named",
        "replaces somebody else's filter that has priority and handle 1",
        change=instead({Attach: AttachOver}),
        cites=("cilium issue 21345",),
        only=("second_attach_fails",),
    ),
    Fault(
        "B22-remove-foreign-filters",
        "named",
        "removes all filters of a hook when it removes its own",
        change=instead({Detach: DetachEverybody}),
        cites=("cilium issue 28433", "the reference commit, removeTCFilters"),
        only=("filters",),
    ),
    Fault(
        "B30-gone-interface-is-a-success",
        "named",
        "calls the reload of an interface that is gone a success",
        change=miss_no_interface,
        cites=("cilium issue 32689", "cilium issue 35803"),
        only=("disappears",),
    ),
    Fault(
        "detach-before-load",
        "named",
        "removes the egress program, when endpoint routes are switched off, before the new programs are loaded",
        change=detach_first,
        cites=("the reference commit, reloadDatapath",),
        only=("switched", "policy_reload"),
    ),
    Fault(
        "routes-of-other-protocols-stay",
        "named",
        "removes only routes of protocol boot when endpoint routes are switched off: others bypass the policy",
        change=instead({RemoveRoutes: RemoveOwnRoutes}),
        cites=("this loader, 2026-11-25",),
        only=("routes",),
    ),
    Fault(
        "refuse-other-chains",
        "named",
        "takes a filter of another chain for one that is in its way, and refuses to reload",
        change=instead({Attach: AttachAlone}),
        cites=("this loader, 2026-11-25",),
        only=("filters",),
    ),
    Fault(
        "obsolete-devices-leak",
        "named",
        "leaves the calls map and the object of a device that is gone",
        change=forget_obsolete,
        cites=("this loader, 2026-11-25",),
        only=("filters", "device"),
    ),
    Fault(
        "policy-slot-stays",
        "named",
        "leaves the policy slot of an endpoint whose new object has no program for it",
        change=instead({Commit: CommitKeepingSlots}),
        cites=("this loader, 2026-11-25",),
        only=("builds", "host_firewall"),
    ),
)
