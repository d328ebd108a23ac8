"""The steps of a reload that packets notice: policy slots, filters, routes, and the commit."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datapath.base.mapnames import KEPT_WHILE_USED, POLICY_ARRAYS, is_calls_map
from datapath.build.objectfile import ObjectFile
from datapath.endpoint import Attachment, Endpoint
from datapath.errors import BpfError, LinkNotFound, LinkReplaced, MapTooSmall, NetlinkError, ReloadlabError
from datapath.kernel import hooks, linkpins, netkit, progarray, routes, tcx, xdp
from datapath.kernel.hooks import Direction, Filter, HookBlocked, HookEmptied, HookShared, HookTaken
from datapath.kernel.map import open_pin
from datapath.kernel.netlink import NetlinkSocket, link_down, link_up, unless
from datapath.kernel.routes import Installed
from datapath.load.programs import Program
from datapath.reload import connections, policyarrays, retired, tcxlinks
from datapath.reload.filters import Replaced, exists, put_back
from datapath.reload.interrupts import signals_held_back
from datapath.reload.outcome import XDP_DIRECTION, Attached
from datapath.reload.prepare import carry_connections_over, noted_maps
from datapath.reload.step import Step
from datapath.reload.tcxlinks import TcxHook
from datapath.reload.workspace import Workspace

NETDEV_PROGRAMS = {Direction.INGRESS: "cil_from_netdev", Direction.EGRESS: "cil_to_netdev"}
"""The programs of the devices, and of interfaces that were devices."""


@dataclass(frozen=True)
class InsertPolicy(Step):
    """Put the policy program into the endpoint's slot of cilium_call_policy, before anything is attached.

    Of every array that programs jump through: see policyarrays.py.
    """

    endpoint_id: int

    name = "insert policy"

    def describe(self) -> str:
        return f"put the policy program of {self.target} into slot {self.endpoint_id} of cilium_call_policy"

    def apply(self, work: Workspace) -> None:
        collection = work.objects[self.target].collection
        for name in POLICY_ARRAYS:
            spec = collection.spec.maps.get(name)
            if spec is None or not spec.contents:
                continue
            size = collection.maps[name].info.max_entries
            if beyond := sum(slot >= size for slot in spec.contents):
                raise MapTooSmall(name, beyond, size)
            arrays = [work.keep_map(open_pin(path)) for path in retired.others(work.config.globals, name)]
            for slot, program in spec.contents.items():
                for array in (*(a for a in arrays if slot < a.info.max_entries), collection.maps[name]):
                    old = progarray.open_program_at(array.fd, slot)
                    back = partial(progarray.clear if old is None else progarray.put, array.fd, slot)
                    work.on_undo(self, back if old is None else partial(back, work.keep_open(old)))
                    progarray.put(array.fd, slot, collection.programs[program].fd)


@dataclass(frozen=True)
class Attach(Step):
    """Give an interface our program in one direction, then remove what we have there otherwise.

    By a link of tcx or netkit, pinned in the directory `links`: filters of ours go when it is there. By a filter: links
    of ours, and filters of ours at other priorities and handles, go when that is there.
    """

    direction: Direction
    program: str
    object: str
    priority: int
    ifindex: int | None = None  # a later interface of the same name is another's
    links: Path = field(kw_only=True)
    attachment: Attachment = Attachment.TC

    @property
    def name(self) -> str:
        return f"attach {self.direction}"

    def describe(self) -> str:
        how = "by a link" if self.attachment is Attachment.TCX else f"priority {self.priority}"
        return f"attach {self.program} of {self.object} to {self.target} {self.direction}, {how}"

    def apply(self, work: Workspace) -> None:
        ifindex = _interface(work, self.target, self.ifindex)
        hook = self._look(work, ifindex)
        program = work.objects[self.object].collection.programs[self.program]
        by_link = self.attachment is Attachment.TCX
        if by_link:
            if not hook.ours and hook.attach_type not in netkit.HOOKS:
                _prepare_clsact(work, ifindex)
            tcxlinks.attach(work, self, hook, program, self.links / self.program)
        else:
            self._attach_filter(work, ifindex, program)
        work.attached[self.key] = Attached(self.target, str(self.direction), self.program, program.id, self.attachment)
        self._remove_others(work, hook, program)
        tcxlinks.warn_of_foreign(work, hook, self.program, by_link=by_link)

    def _look(self, work: Workspace, ifindex: int) -> TcxHook:
        return tcxlinks.look(work, self.target, ifindex, self.direction)

    def _remove_others(self, work: Workspace, hook: TcxHook, program: Program) -> None:
        """Remove what we have at the hook by the other way of attaching."""
        if self.attachment is Attachment.TCX:
            _remove_filters(work, self, self.target, hook.ifindex, self.direction, hooks.OURS)
        else:
            tcxlinks.detach(work, self, hook, self.links, program=program)

    def _attach_filter(self, work: Workspace, ifindex: int, program: Program) -> None:
        netlink = work.netlink
        present = hooks.filters(netlink, ifindex, self.direction)
        self._refuse_foreign(present)
        ours = [f for f in present if f.is_ours]
        replaced = Replaced(self.target, ifindex, filters=[(f, work.keep_program(f.program_id)) for f in ours])
        work.on_undo(self, partial(put_back, work, replaced))
        if not present:
            self._ensure_clsact(work, ifindex)
        name, program_id = hooks.filter_name(self.program, self.target), program.id
        # Noted before it is done: an interruption may come before the kernel's answer.
        replaced.attached = Filter(
            ifindex, self.direction, self.priority, hooks.ETH_P_ALL, hooks.HANDLE, "bpf", name, program_id
        )
        try:
            hooks.attach(
                *(netlink, ifindex, self.direction),
                program_fd=program.fd,
                name=name,
                priority=self.priority,
                exclusive=not self._replaces(present),
            )
        except NetlinkError as error:
            if error.errno == errno.EEXIST:  # somebody has come first
                self._refuse_foreign(hooks.filters(netlink, ifindex, self.direction))
            raise
        self._remove_stale(netlink, ours)

    def _replaces(self, present: Sequence[Filter]) -> bool:
        """Tell whether a filter of ours is where the new one goes; another's is not replaced."""
        return any(f.is_ours and (f.priority, f.handle) == (self.priority, hooks.HANDLE) for f in present)

    def _refuse_foreign(self, present: Sequence[Filter]) -> None:
        """Raise HookTaken where the kernel would put our filter in the place of somebody else's."""
        for found in present:
            if not found.is_ours and hooks.collides(found, self.priority):
                raise HookTaken(self.target, found)

    def _remove_stale(self, netlink: NetlinkSocket, ours: Sequence[Filter]) -> None:
        """Remove those of our former filters that the new one has not replaced."""
        for stale in ours:
            if (stale.priority, stale.handle) != (self.priority, hooks.HANDLE):
                hooks.detach(netlink, stale)

    def _ensure_clsact(self, work: Workspace, ifindex: int) -> None:
        found = hooks.qdisc(work.netlink, ifindex)
        if found is not None and found.blocks[self.direction]:
            raise HookShared(self.target, self.direction, found.blocks[self.direction])
        hooks.ensure_clsact(work.netlink, ifindex)


@dataclass(frozen=True)
class Detach(Step):
    """Remove our filters and tcx links from an interface in one direction; those of others stay."""

    direction: Direction
    prefix: str = hooks.OURS
    required: bool = True  # False: no interface, nothing to remove
    ifindex: int | None = None  # a later interface of the same name is another's
    links: Path = field(kw_only=True)  # where links of the interface are pinned

    @property
    def name(self) -> str:
        return f"detach {self.direction}"

    def describe(self) -> str:
        return f"remove programs {self.prefix}* from {self.target} {self.direction}"

    def apply(self, work: Workspace) -> None:
        try:
            self._detach(work)
        except LinkNotFound:
            if self.required:
                raise
        except (NetlinkError, BpfError) as error:
            # It may go at any moment.
            if self.required or error.errno != errno.ENODEV:
                raise

    def _detach(self, work: Workspace) -> None:
        ifindex = _interface(work, self.target, self.ifindex)
        _remove_filters(work, self, self.target, ifindex, self.direction, self.prefix)
        hook = tcxlinks.look(work, self.target, ifindex, self.direction)
        tcxlinks.detach(work, self, hook, self.links, prefix=self.prefix)


@dataclass(frozen=True)
class SetUp(Step):
    """Set up a pod's interface that an unload which did not end may have set down.

    If the reload fails it is down, whatever it was: it may have no programs.
    """

    ifindex: int | None = None

    name = "set up"

    def describe(self) -> str:
        return f"set {self.target} up, which an unload that did not end may have set down"

    def apply(self, work: Workspace) -> None:
        ifindex = _interface(work, self.target, self.ifindex)
        down = partial(unless, errno.ENODEV, work.netlink, f"set interface {ifindex} down", link_down(ifindex))
        work.on_undo(self, down)
        work.netlink.request(f"set interface {ifindex} up", link_up(ifindex))


@dataclass(frozen=True)
class InstallRoutes(Step):
    """Install the endpoint's own routes (endpoint routes on)."""

    endpoint: Endpoint

    name = "install routes"

    def describe(self) -> str:
        return f"route {_addresses(self.endpoint)} directly to {self.target}"

    def apply(self, work: Workspace) -> None:
        for route in routes.endpoint_routes(self.endpoint, _interface(work, self.target, self.endpoint.ifindex)):
            before = routes.current(work.netlink, route.address)
            if before is not None and before.ifindex == route.ifindex:
                continue
            if before is None and routes.through(work.netlink, route):
                # It is there: a rule leads the look-up to another table.
                continue
            # A route of another metric does not take the place of ours; where it does, there is nothing to remove.
            work.on_undo(self, partial(routes.remove, work.netlink, route))
            if before is not None:
                work.on_undo(self, partial(_restore, work, before, routes.restore))
            routes.upsert(work.netlink, route)


@dataclass(frozen=True)
class RemoveRoutes(Step):
    """Remove every route to the endpoint through its interface (endpoint routes off), whoever installed it.

    At the reference commit nobody does. A packet that finds one bypasses the policy program.
    """

    endpoint: Endpoint

    name = "remove routes"

    def describe(self) -> str:
        return f"remove direct routes of {_addresses(self.endpoint)} to {self.target}"

    def apply(self, work: Workspace) -> None:
        def note(before: Installed) -> None:
            work.on_undo(self, partial(_restore, work, before, routes.add_again))

        for route in routes.endpoint_routes(self.endpoint, _interface(work, self.target, self.endpoint.ifindex)):
            routes.remove_all(work.netlink, route, note)


@dataclass(frozen=True)
class Commit(Step):
    """Let go of what was replaced. Every program of every object is attached by now.

    `obsolete` are pins, directories of links and objects of interfaces whose programs this reload has detached, or that
    are gone.
    """

    objects: tuple[ObjectFile, ...]
    obsolete: tuple[Path, ...] = ()

    name = "commit"

    def describe(self) -> str:
        published = ", ".join(item.name for item in self.objects)
        said = [f"remove the :pending pins and publish {published}"] if published else []
        said += [f"remove {', '.join(path.name for path in self.obsolete)}"] if self.obsolete else []
        return "; ".join(said) or "nothing is left to do"

    def apply(self, work: Workspace) -> None:
        _check_attached(work)
        for item in self.objects:
            carry_connections_over(item, work)
        for item in self.objects:
            work.on_undo(self, item.retract)
            item.publish()
        # From here on nothing is undone: an interruption would leave what was replaced.
        with signals_held_back():
            work.committed = True
            self._let_go(work)

    def _let_go(self, work: Workspace) -> None:
        """Remove what nothing needs any more. All is new by now: what cannot be removed is a warning, not a failure."""
        for what, action in work.to_let_go:
            _attempt(work, what, action)
        for item in self.objects:
            for pin in work.objects[item.name].moved:
                if is_calls_map(pin.path.name):
                    _attempt(work, f"holding the old map {pin.path.name}", partial(work.replaced.take, pin.pending))
                let_go = pin.retire if pin.path.name in KEPT_WHILE_USED else pin.finalize
                _attempt(work, f"the old map {pin.path.name}", let_go)
            _attempt(work, f"the old object of {item.name}", item.settle)
        for directory in {item.path.parent: None for item in self.objects}:
            _attempt(work, f"the note of the maps in {directory}", partial(self._remember_maps, work, directory))
        for path in self.obsolete:
            _attempt(work, path.name, partial(_remove, work, path))
        _attempt(work, "a policy slot", partial(self._clear_policy, work))
        _attempt(work, "a retired map", partial(release_maps, work))

    def _remember_maps(self, work: Workspace, directory: Path) -> None:
        maps = [work.objects[item.name].collection.maps for item in self.objects if item.path.parent == directory]
        connections.remember(directory, maps, noted_maps(directory, work))

    def _clear_policy(self, work: Workspace) -> None:
        """Empty the policy slots of an endpoint whose new object has no program for them."""
        maps = [work.objects[item.name].collection.spec.maps for item in self.objects]
        for ident in {item.endpoint.id for item in self.objects if item.endpoint is not None}:
            filled = {name for name in POLICY_ARRAYS for each in maps if name in each and ident in each[name].contents}
            policyarrays.clear(work.config.globals, ident, keep=filled)


def _interface(work: Workspace, ifname: str, wanted: int | None) -> int:
    """Return the index of an interface; LinkReplaced if it is not the wanted one."""
    found = work.netlink.ifindex(ifname)
    if wanted not in (None, found):
        raise LinkReplaced(ifname, found, wanted)
    return found


def _prepare_clsact(work: Workspace, ifindex: int) -> None:
    """Give the interface a clsact before it has a tcx link, for a later reload that attaches by tc.

    The kernel drops what is sent while the qdisc of an interface is added (qdisc_graft: dev_deactivate). tcx itself
    does without: a kernel that has no clsact, or another qdisc in its place, is no obstacle.
    """
    try:
        hooks.ensure_clsact(work.netlink, ifindex)
    except HookBlocked:
        return
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise


def _remove_filters(work: Workspace, step: Step, ifname: str, ifindex: int, direction: Direction, prefix: str) -> None:
    """Remove our filters whose names begin with the prefix."""
    replaced = Replaced(ifname, ifindex)
    work.on_undo(step, partial(put_back, work, replaced))
    for found in hooks.filters(work.netlink, ifindex, direction):
        if found.is_ours and found.name.startswith(prefix):
            replaced.filters.append((found, work.keep_program(found.program_id)))
            hooks.detach(work.netlink, found)


def _check_attached(work: Workspace) -> None:
    """Raise HookEmptied if a hook does not run what this reload has attached to it; an interface that is gone has none.

    Somebody else may have deleted a qdisc or detached a link meanwhile.
    """
    for each in work.attached.values():
        try:
            present = _is_attached(work, each, work.netlink.ifindex(each.ifname))
        except LinkNotFound:
            continue
        if not present:
            raise HookEmptied(each.ifname, each.direction, each.program)


def _is_attached(work: Workspace, program: Attached, ifindex: int) -> bool:
    wanted = program.program_id
    if program.direction == XDP_DIRECTION:
        return wanted in [found.program_id for found in xdp.attached(work.netlink, ifindex)]
    direction = Direction[program.direction.upper()]
    if wanted in [found.program_id for found in hooks.filters(work.netlink, ifindex, direction)]:
        return True
    return wanted in [found.entry.program_id for found in tcx.programs(work.config.netns, ifindex, direction)]


def _remove(work: Workspace, path: Path) -> None:
    """Remove a file, or the links of the host's programs that are pinned in a directory; XDP has its own there."""
    if path.is_relative_to(work.config.devices_links):
        linkpins.remove(path, only=NETDEV_PROGRAMS.values())
    else:
        path.unlink(missing_ok=True)


def _attempt(work: Workspace, what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except (ReloadlabError, OSError) as error:
        work.warnings.append(f"the reload is done, but {what} is left: {error}")


def release_maps(work: Workspace) -> None:
    """Let go of retired maps, unless other reloads are under way: the one that ends last does it.

    The reload is done by now. What is left, a warning names; the next reload tries again.
    """
    names = retired.pin_names(work.config.globals)
    if names and work.maps_lock.try_exclusive():
        release = partial(retired.release, work.config.globals, work.netlink, work.config.netns)
        _attempt(work, f"what no program uses of {', '.join(names)}", release)


def _restore(work: Workspace, before: Installed, how: Callable[[NetlinkSocket, Installed], None]) -> None:
    """Put a route back. An interface that is gone took its routes with it: nothing to do."""
    try:
        how(work.netlink, before)
    except NetlinkError:
        if exists(work, before.ifindex):
            raise


def _addresses(endpoint: Endpoint) -> str:
    return " and ".join(str(a) for a in (endpoint.ipv4, endpoint.ipv6) if a is not None)
