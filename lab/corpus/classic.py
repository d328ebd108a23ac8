"""Seventeen faulty loaders that are wrong in every plan: what a loader gets wrong first, and what a test sees last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from datapath.endpoint import Attachment
from datapath.kernel import bpf, hooks, links, tcx
from datapath.kernel.hooks import Direction
from datapath.kernel.netns import enter
from datapath.reload.plans import CILIUM_HOST
from datapath.reload.prepare import FillArrays, WriteObject
from datapath.reload.step import Plan, Step
from datapath.reload.switchover import Attach, Commit, Detach, InsertPolicy, InstallRoutes, RemoveRoutes
from datapath.reload.workspace import Workspace
from lab.corpus.fault import Fault
from lab.corpus.halves import FillAllBut
from lab.corpus.loaders import finalize_too_early, never_finalize, skip_revert
from lab.corpus.named_maps import reuse_calls_map
from lab.corpus.steps import GAP, each, each_of, instead, skipped


@dataclass(frozen=True)
class AttachLate(Attach):
    """Leaves the hook without a program for a moment before the new one is attached."""

    def apply(self, work: Workspace) -> None:
        ifindex = work.netlink.ifindex(self.target)
        self._empty_filters(work, ifindex)
        self._empty_links(work, ifindex)
        super().apply(work)

    def _empty_filters(self, work: Workspace, ifindex: int) -> None:
        ours = [found for found in hooks.filters(work.netlink, ifindex, self.direction) if found.is_ours]
        programs = [work.keep_program(found.program_id) for found in ours]
        for found in ours:
            hooks.detach(work.netlink, found)
        time.sleep(GAP if ours else 0)
        for found, program in zip(ours, programs, strict=True):
            # So that the rollback finds what it must put back.
            hooks.attach(
                work.netlink,
                ifindex,
                self.direction,
                program_fd=program,
                name=found.name,
                priority=found.priority,
                handle=found.handle,
            )

    def _empty_links(self, work: Workspace, ifindex: int) -> None:
        ours = [found for found in tcx.programs(work.config.netns, ifindex, self.direction) if found.is_ours]
        programs = [work.keep_program(found.entry.program_id) for found in ours]
        for found in ours:
            links.detach(work.keep_open(links.fd_by_id(found.entry.link_id)))
        time.sleep(GAP if ours else 0)
        for program in programs:
            with enter(work.config.netns):
                link = work.keep_open(links.create(program, ifindex, tcx.attach_type(ifindex, self.direction)))
            path = self.links / self.program
            path.unlink(missing_ok=True)
            bpf.obj_pin(link, path)


@dataclass(frozen=True)
class AttachBehind(Attach):
    """Attaches the new program behind the old one, which packets go on to meet."""

    def apply(self, work: Workspace) -> None:
        program = work.objects[self.object].collection.programs[self.program]
        ifindex = work.netlink.ifindex(self.target)
        if self.attachment is Attachment.TCX:
            with enter(work.config.netns):
                work.keep_open(links.create(program.fd, ifindex, tcx.attach_type(ifindex, self.direction)))
            return
        name, behind = hooks.filter_name(self.program, self.target), self.priority + 1
        hooks.ensure_clsact(work.netlink, ifindex)
        hooks.attach(work.netlink, ifindex, self.direction, program_fd=program.fd, name=name, priority=behind)
        for found in hooks.filters(work.netlink, ifindex, self.direction):
            if found.priority == behind:
                work.on_undo(self, partial(hooks.detach, work.netlink, found))


def leave_slots_empty(*programs: str) -> Callable[[Plan], Plan]:
    """Return a change that leaves the slots of these programs empty."""
    return instead({FillArrays: partial(FillAllBut, left_out=programs)})


def never_attach(direction: Direction, target: str | None = None) -> Callable[[Plan], Plan]:
    """Return a change that attaches no program in a direction, to one interface or to any."""

    def left_out(_: Plan, step: Step) -> bool:
        return isinstance(step, Attach) and step.direction is direction and target in (None, step.target)

    return lambda plan: each(plan, left_out, skipped)


def compile_wrong_identity(plan: Plan) -> Plan:
    """Build the programs with the identity of somebody else."""

    def change(step: Step) -> Step:
        if not isinstance(step, WriteObject) or step.object.endpoint is None:
            return step
        wrong = replace(step.object.endpoint, identity=step.object.endpoint.identity + 1)
        return replace(step, object=replace(step.object, endpoint=wrong))

    return plan.change(change)


keep_policy_slots = each_of(InsertPolicy, skipped)
"""Leave the policy programs of the load before in their slots."""

attach_late = instead({Attach: AttachLate})
"""Empty each hook for a moment before the new program is attached."""

attach_behind = instead({Attach: AttachBehind})
"""Attach each new program behind the old one."""


def commit_before_last_attach(plan: Plan) -> Plan:
    """Let go of what was replaced while one old program is still attached."""
    steps = list(plan.steps)
    commit = next(at for at, step in enumerate(steps) if isinstance(step, Commit))
    steps.insert(_last_attach(steps), steps.pop(commit))
    return replace(plan, steps=tuple(steps))


def fill_after_attach(plan: Plan) -> Plan:
    """Fill the calls maps when all programs that use them are attached."""
    fills = tuple(step for step in plan.steps if isinstance(step, FillArrays))
    steps = [step for step in plan.steps if step not in fills]
    at = _last_attach(steps) + 1
    return replace(plan, steps=(*steps[:at], *fills, *steps[at:]))


def _last_attach(steps: list[Step]) -> int:
    return max(at for at, step in enumerate(steps) if isinstance(step, Attach))


def detach_before_load(plan: Plan) -> Plan:
    """Remove the filters before the programs that replace them are loaded, as the reference does for egress."""
    bare = tuple(
        Detach(step.target, step.direction, ifindex=step.ifindex, links=step.links)
        for step in plan.steps
        if isinstance(step, Attach)
    )
    return replace(plan, steps=(*bare, *plan.steps))


remove_installed_routes = instead({InstallRoutes: RemoveRoutes})
"""Remove the endpoint's routes where they are to be installed."""

_IPV6 = ("tail_handle_ipv6", "tail_handle_ipv6_from_host", "tail_handle_ipv6_from_netdev")

_LOADERS: tuple[tuple[str, str, Callable[[Plan], Plan], tuple[str, ...]], ...] = (
    ("arp-slot-empty", "leaves the slot of the ARP responder empty", leave_slots_empty("tail_handle_arp"), ()),
    (
        "neighbour-slot-empty",
        "leaves the slot of the responder to neighbour solicitations empty",
        leave_slots_empty("tail_icmp6_handle_ns"),
        (),
    ),
    ("ipv6-slot-empty", "leaves the slots of the IPv6 programs empty", leave_slots_empty(*_IPV6), ()),
    (
        "to-host-never-attached",
        "never attaches cil_to_host to cilium_host again",
        never_attach(Direction.INGRESS, CILIUM_HOST),
        (),
    ),
    ("egress-never-attached", "never attaches an egress program again", never_attach(Direction.EGRESS), ()),
    ("wrong-identity", "compiles the identity of somebody else in", compile_wrong_identity, ()),
    ("policy-slots-kept", "leaves the policy slots to the load before", keep_policy_slots, ()),
    (
        "calls-map-reused",
        "fills the calls map that attached programs use",
        reuse_calls_map,
        ("cilium issue 20691",),
    ),
    ("hook-emptied", "leaves each hook empty for 2 ms before it attaches", attach_late, ()),
    ("attached-behind", "attaches behind the program that it should replace", attach_behind, ()),
    ("commit-before-last-attach", "commits before the last program is attached", commit_before_last_attach, ()),
    ("fill-after-attach", "fills the calls maps after all programs are attached", fill_after_attach, ()),
    (
        "detach-before-load",
        "removes the filters before it loads the new programs",
        detach_before_load,
        ("the reference commit, reloadDatapath",),
    ),
    ("routes-removed", "removes the endpoint's routes where they are wanted", remove_installed_routes, ()),
    (
        "finalized-after-first-attach",
        "lets go of the old calls map after the first attach",
        finalize_too_early,
        ("cilium issue 16561", "cilium issue 17744"),
    ),
    ("maps-not-reverted", "leaves moved maps at :pending when the load fails", skip_revert, ()),
    ("old-maps-kept", "leaves the old maps pinned for ever", never_finalize, ()),
)

FAULTS = tuple(
    Fault(
        f"loader/{name}", "plan", what, change=change, cites=cites, only=("test_hitless", "test_host", "test_two_nodes")
    )
    for name, what, change, cites in _LOADERS
)
"""The seventeen, as faults."""
