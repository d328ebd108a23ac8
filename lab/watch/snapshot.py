"""What the kernel holds for one node, read at one moment: filters, pins, maps, programs, routes."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field

from datapath.bpftypes import MapType
from datapath.errors import BpfError
from datapath.kernel import bpf, hooks, progarray
from datapath.kernel.hooks import Direction, Filter
from datapath.kernel.inventory import program_maps, reach, read_slots
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import RETIRED, is_calls_map
from datapath.kernel.routes import current
from datapath.load.maps import open_pin
from datapath.reload.connections import CONNECTIONS, lifetime_of
from lab.node.node import Node

COUNTERS = (
    *("cilium_metrics", "reloadlab_hits", "cilium_events", "cilium_signals", "cilium_snat"),
    *("cilium_ipv4_frag", "cilium_ipv6_frag"),
)
"""Maps whose content moves with every packet."""

POLICY_VERDICT = 8
"""Bytes of struct policy_entry before its counters."""


@dataclass(frozen=True, slots=True)
class PinnedMap:
    """A pinned map: its id, and its content unless it counts packets (None then).

    Of connections, the content is the keys alone; `lifetimes` says until when each holds, in seconds of the clock of
    datapath.reload.connections.
    """

    id: int
    type: int
    content: Mapping[bytes, bytes] | None
    lifetimes: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of a node.

    `filters` by (interface, direction), `pins` by name, `slots` slot -> program id by calls map, `policy` endpoint
    id -> program id, `routes` address -> interface index of the endpoints' own routes. `retired` is what `policy` is,
    of each array that was replaced and is pinned because programs still jump through it, by the name of its pin.
    `programs` are all loaded programs that use a map of this node, `reachable` those that are attached or lie in a
    slot of a pinned calls map, and what these lead to; `calls` are the calls maps that those use, pinned or not.
    """

    filters: Mapping[tuple[str, Direction], tuple[Filter, ...]]
    pins: Mapping[str, PinnedMap]
    slots: Mapping[str, Mapping[int, int]]
    policy: Mapping[int, int]
    retired: Mapping[str, Mapping[int, int]]
    routes: Mapping[str, int]
    programs: frozenset[int]
    reachable: frozenset[int]
    calls: frozenset[int]

    def datapath(self) -> tuple[object, ...]:
        """Return all that a reload that failed must leave as it was."""
        pins = {name: pin.id for name, pin in self.pins.items()}
        contents = {name: pin.content for name, pin in self.pins.items()}
        return self.filters, pins, contents, self.slots, (self.policy, self.retired), self.routes


def take(node: Node) -> Snapshot:
    """Read a node. No descriptor stays open: one of a calls map would keep it filled that the kernel has to empty."""
    pins: dict[str, PinnedMap] = {}
    slots: dict[str, dict[int, int]] = {}
    policy: dict[int, int] = {}
    retired: dict[str, dict[int, int]] = {}
    directory = node.datapath_config().globals
    ids = [e.id for e in node.endpoints()]
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        with open_pin(path) as pinned:
            info = pinned.info
            content: dict[bytes, bytes] | None = None
            lifetimes: dict[bytes, int] = {}
            if info.type == MapType.PROG_ARRAY:
                filled = read_slots(pinned.fd)
                if filled is not None:
                    slots[path.name] = filled
                elif path.name == "cilium_call_policy":
                    policy |= _policy(pinned.fd, ids)
                elif RETIRED in path.name:
                    retired[path.name] = _policy(pinned.fd, ids)
            elif not path.name.startswith(COUNTERS):
                items = dict(pinned.items())
                content = {key: _steady(path.name, value) for key, value in items.items()}
                if path.name.startswith(CONNECTIONS):
                    lifetimes = {key: lifetime_of(value) for key, value in items.items()}
            pins[path.name] = PinnedMap(info.id, info.type, content, lifetimes)
    with NetlinkSocket(node.netns("node")) as netlink:
        links = netlink.interfaces()
        filters = {
            (link.name, direction): found
            for link in links.values()
            for direction in Direction
            if (found := hooks.all_filters(netlink, link.ifindex, direction))
        }
        routes = {}
        for endpoint in node.endpoints():
            for address in (endpoint.ipv4, endpoint.ipv6):
                route = None if address is None else current(netlink, address)
                if route is not None and not endpoint.is_host:
                    routes[str(address)] = route.ifindex
    attached = {f.program_id for found in filters.values() for f in found if f.program_id}
    in_slots = {program for filled in slots.values() for program in filled.values()}
    in_slots |= {program for filled in retired.values() for program in filled.values()}
    held = reach(attached | set(policy.values()) | in_slots)
    ours = held.maps | {pin.id for pin in pins.values()}
    loaded = programs_using(ours)
    return Snapshot(filters, pins, slots, policy, retired, routes, loaded, held.programs, held.calls)


def calls_maps(snapshot: Snapshot) -> dict[str, int]:
    """Return name -> id of the pinned calls maps."""
    return {name: pin.id for name, pin in snapshot.pins.items() if is_calls_map(name)}


def _steady(name: str, value: bytes) -> bytes:
    """Return the part of a value that packets do not change: of a connection, nothing but its key."""
    if name.startswith(CONNECTIONS):
        return b""
    return value[:POLICY_VERDICT] if name.startswith("cilium_policy_") else value


def _policy(fd: int, ids: list[int]) -> dict[int, int]:
    found = {ident: progarray.program_at(fd, ident) for ident in ids}
    return {ident: program for ident, program in found.items() if program is not None}


def programs_using(maps: frozenset[int]) -> frozenset[int]:
    """Return the ids of all loaded programs that use one of `maps`.

    Programs of other nodes use other maps, so several nodes side by side do not count each other's.
    """
    programs = set()
    ident = bpf.prog_next_id(0)
    while ident is not None:
        try:
            if maps.intersection(program_maps(ident)):
                programs.add(ident)
        except BpfError as error:
            if error.errno != errno.ENOENT:  # unloaded between the two calls
                raise
        ident = bpf.prog_next_id(ident)
    return frozenset(programs)
