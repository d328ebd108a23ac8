"""The kernel's state of one node: filters, pins, maps, programs and routes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from datapath.base import mapnames
from datapath.base.bpftypes import MapType
from datapath.base.mapnames import CONNECTIONS, POLICY_ARRAYS, POLICY_CALLS, is_calls_map
from datapath.endpoint import Endpoint
from datapath.kernel import progarray, routes
from datapath.kernel.hooks import Direction, Filter
from datapath.kernel.inventory import all_programs, program_maps, reach, read_slots
from datapath.kernel.links import info as link_info
from datapath.kernel.map import Map, pinned_maps
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import RETIRED
from datapath.kernel.uapi import ProgInfo
from datapath.kernel.xdp import Attached, Mode, all_attached, link_of
from datapath.reload.connections import is_closing, lifetime_of
from datapath.reload.xdp import OURS
from lab.abi import tables
from lab.abi.record import UnknownLayout
from lab.node.node import Node
from lab.node.topology import NODE
from lab.watch.attached import filters_of
from lab.watch.surroundings import Surroundings, read_surroundings

COUNTERS = (
    *(mapnames.METRICS, "reloadlab_hits", mapnames.EVENTS, mapnames.SIGNALS, mapnames.SNAT4, mapnames.SNAT6),
    *(mapnames.FRAGMENTS4, mapnames.FRAGMENTS6, mapnames.BUFFERS),
    *(mapnames.XDP_SCRATCH, mapnames.POLICY_STATS, "cilium_ratelimit", "cilium_l2_responder_v4"),
)
"""Prefixes of maps whose content changes with every packet."""

KERNEL_NAME = 15
"""Characters of a program's name that the kernel keeps (BPF_OBJ_NAME_LEN, with a final NUL)."""

POLICY_VERDICT = 8
"""Bytes of struct policy_entry before the counters, in our own sources."""

DATAPATH = (
    *("filters", "pins", "contents", "slots", "policy slots", "routes"),
    *("networks", "XDP programs", "other pins"),
)
"""What Snapshot.datapath returns."""


@dataclass(frozen=True, slots=True)
class PinnedMap:
    """A pinned map: its id, and its content unless it counts packets (None then).

    Of connections, the content is the keys alone; `lifetimes` says until when each holds, in seconds of the clock of
    datapath.reload.connections, and `closing` which of them a side has closed. Of an endpoint's policy, `counters` are
    the packets and bytes of each entry.
    `sizes` are the bytes of a key and of a value.
    """

    id: int
    type: int
    content: Mapping[bytes, bytes] | None
    lifetimes: Mapping[bytes, int] = field(default_factory=dict)
    closing: frozenset[bytes] = frozenset()
    counters: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    sizes: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """A program at an interface's XDP hook; `link_id` is that of the link that holds it there, None without one."""

    mode: Mode
    program_id: int
    name: str
    link_id: int | None

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a node at one moment.

    `filters` are by (interface, direction), programs of the tcx hook first (lab.node.tcxhooks). `pins` are
    by name. `slots` has slot -> program id for each calls map, `policies` endpoint id -> program id for each policy
    array, `routes` address -> interface index of the endpoints' own routes.
    `retired` has the slots of each replaced policy array that is still pinned because programs use it, by pin name.
    `programs` are the ids of all loaded programs that use a map of this node, `reachable` those that are attached or in
    a slot of a pinned calls map, and the targets of their tail calls; `calls` are the ids of their calls maps.
    `infos` describes both. `ways` is address -> (table, interface index) by which the node's own packets leave for an
    endpoint. `xdp` are the programs at XDP by interface.
    """

    filters: Mapping[tuple[str, Direction], tuple[Filter, ...]]
    pins: Mapping[str, PinnedMap]
    slots: Mapping[str, Mapping[int, int]]
    policies: Mapping[str, Mapping[int, int]]
    retired: Mapping[str, Mapping[int, int]]
    routes: Mapping[str, int]
    ways: Mapping[str, tuple[int, int]]
    programs: frozenset[int]
    reachable: frozenset[int]
    calls: frozenset[int]
    infos: Mapping[int, ProgInfo]
    around: Surroundings
    xdp: Mapping[str, tuple[XdpProgram, ...]] = field(default_factory=dict)

    def maps_of(self, program: int) -> tuple[int, ...]:
        """Return the ids of the maps that a program of the node uses; BpfError with ENOENT for one that is gone."""
        info = self.infos.get(program)
        return program_maps(program) if info is None else info.map_ids

    @property
    def policy(self) -> Mapping[int, int]:
        """The filled slots of cilium_call_policy: endpoint id -> program id."""
        return self.policies.get(POLICY_CALLS, {})

    def datapath(self) -> tuple[object, ...]:
        """Return everything that a failed reload must leave as it was, in the order of DATAPATH."""
        pins = {name: pin.id for name, pin in self.pins.items()}
        # Traffic begins connections all the time. Slots are told by themselves, counters not at all.
        read = {name: pin.content for name, pin in self.pins.items() if pin.content is not None}
        contents = {name: content for name, content in read.items() if not name.startswith(CONNECTIONS)}
        policy, around = (self.policies, self.retired), self.around
        networks = {NODE: around.network, **around.inside}
        # A link that is made again to put a program back has another id.
        xdp = {name: [(e.mode, e.program_id, e.link_id is None) for e in found] for name, found in self.xdp.items()}
        return self.filters, pins, contents, self.slots, policy, self.routes, networks, xdp, around.pins


@dataclass(frozen=True, slots=True)
class _Maps:
    """The pinned maps of a node, as in Snapshot."""

    pins: dict[str, PinnedMap] = field(default_factory=dict)
    slots: dict[str, dict[int, int]] = field(default_factory=dict)
    policies: dict[str, dict[int, int]] = field(default_factory=dict)
    retired: dict[str, dict[int, int]] = field(default_factory=dict)

    @property
    def programs(self) -> set[int]:
        """All programs in a slot."""
        filled = (*self.slots.values(), *self.retired.values(), *self.policies.values())
        return {program for each in filled for program in each.values()}

    @property
    def policy_arrays(self) -> set[int]:
        """The ids of the policy arrays: a small one looks like a calls map, but belongs to the whole node."""
        return {self.pins[name].id for name in (*self.policies, *self.retired)}


def take(node: Node) -> Snapshot:
    """Read a node. No descriptor stays open: one of an unpinned calls map would keep the kernel from emptying it."""
    directory = node.globals
    maps, endpoints = _Maps(), node.endpoints()
    for pinned in pinned_maps(directory):
        _read_map(pinned, [endpoint.id for endpoint in endpoints], maps)
    with NetlinkSocket(node.netns(NODE)) as netlink:
        filters = filters_of(node, netlink)
        at_xdp = {name: (netlink.ifindex(name), found) for name, found in all_attached(netlink).items()}
        ways = {
            str(address): way for address in _addresses(endpoints) if (way := routes.way(netlink, address)) is not None
        }
    attached = {each.program_id for found in filters.values() for each in found if each.program_id}
    attached |= {each.program_id for _, found in at_xdp.values() for each in found}
    infos = all_programs()

    def maps_of(ident: int) -> tuple[int, ...]:
        return infos[ident].map_ids if ident in infos else program_maps(ident)

    held = reach(attached | maps.programs, maps_of)
    # Programs of other nodes use other maps: several nodes side by side do not count each other's.
    shared = held.maps | {pin.id for pin in maps.pins.values()}
    loaded = frozenset(ident for ident, info in infos.items() if shared.intersection(info.map_ids))
    kept = {ident: info for ident, info in infos.items() if ident in loaded or ident in held.programs}
    around = read_surroundings(node, kept, maps.pins.keys())
    return Snapshot(
        filters=filters,
        pins=maps.pins,
        slots=maps.slots,
        policies=maps.policies,
        retired=maps.retired,
        routes=_direct(around.network.routes, endpoints),
        ways=ways,
        programs=loaded,
        reachable=held.programs,
        calls=held.calls - maps.policy_arrays,
        infos=kept,
        around=around,
        xdp={name: tuple(_at_xdp(ifindex, each, infos) for each in found) for name, (ifindex, found) in at_xdp.items()},
    )


def _at_xdp(ifindex: int, found: Attached, infos: Mapping[int, ProgInfo]) -> XdpProgram:
    name = infos[found.program_id].name if found.program_id in infos else ""
    link = link_of(ifindex, found.program_id)
    if link is None:
        return XdpProgram(found.mode, found.program_id, name, None)
    try:
        return XdpProgram(found.mode, found.program_id, name, link_info(link).id)
    finally:
        os.close(link)


def _read_map(pinned: Map, endpoint_ids: Sequence[int], maps: _Maps) -> None:
    """Add a pinned map to `maps`."""
    name, info = pinned.name, pinned.info
    content: dict[bytes, bytes] | None = None
    lifetimes: dict[bytes, int] = {}
    closing: frozenset[bytes] = frozenset()
    counters: dict[bytes, tuple[int, int]] = {}
    if info.type == MapType.PROG_ARRAY:
        _read_program_array(pinned, endpoint_ids, maps)
    elif not name.startswith(COUNTERS):
        content = dict(pinned.items())
        if name.startswith(CONNECTIONS):
            lifetimes = {key: lifetime_of(value) for key, value in content.items()}
            closing = frozenset(key for key, value in content.items() if is_closing(value))
            content = dict.fromkeys(content, b"")  # packets change all of an entry
        elif mapnames.is_policy_map(name):
            # What somebody else pins by such a name may have any size. Whoever works with it says so.
            with suppress(UnknownLayout):
                content, counters = _policy_entries(pinned, content)
    sizes = (info.key_size, info.value_size)
    maps.pins[name] = PinnedMap(info.id, info.type, content, lifetimes, closing, counters, sizes)


def _read_program_array(pinned: Map, endpoint_ids: Sequence[int], maps: _Maps) -> None:
    """Add the slots of a program array to `maps`. Its name says what it is: a policy array can have any size."""
    name = pinned.name
    if name in POLICY_ARRAYS:
        maps.policies[name] = _policy(pinned.fd, endpoint_ids)
    elif RETIRED in name:
        maps.retired[name] = _policy(pinned.fd, endpoint_ids)
    elif name.partition(":")[0] not in POLICY_ARRAYS and (filled := read_slots(pinned.fd)) is not None:
        maps.slots[name] = filled


def _addresses(endpoints: Sequence[Endpoint]) -> Iterator[IPv4Address | IPv6Address]:
    """Yield the addresses of the endpoints that have routes of their own: all but the host."""
    for endpoint in endpoints:
        if not endpoint.is_host:
            yield from (address for address in (endpoint.ipv4, endpoint.ipv6) if address is not None)


def _direct(messages: frozenset[bytes], endpoints: Sequence[Endpoint]) -> dict[str, int]:
    """Return address -> interface index of the endpoints' own routes; one to its own interface before another."""
    found = {}
    wanted = {address.packed: address for address in _addresses(endpoints)}
    interfaces = {address: endpoint.ifindex for endpoint in endpoints for address in (endpoint.ipv4, endpoint.ipv6)}
    for packed, ifindexes in routes.direct(messages, wanted).items():
        own = interfaces.get(wanted[packed])
        found[str(wanted[packed])] = own if own is not None and own in ifindexes else min(ifindexes, default=0)
    return found


def calls_maps(snapshot: Snapshot) -> dict[str, int]:
    """Return the ids of the pinned calls maps by name."""
    return {name: pin.id for name, pin in snapshot.pins.items() if is_calls_map(name)}


def _policy_entries(
    pinned: Map, content: dict[bytes, bytes]
) -> tuple[dict[bytes, bytes], dict[bytes, tuple[int, int]]]:
    """Return the part of each entry that packets do not change, and the counters; these may stand in another map."""
    codec = tables.POLICY.of(pinned).value
    verdict = POLICY_VERDICT if codec.record is None else codec.place("packets")
    if verdict is None:
        return content, {}
    entries = {key: codec.unpack(value) for key, value in content.items()}
    counters = {key: (entry.packets, entry.length) for key, entry in entries.items()}
    return {key: value[:verdict] for key, value in content.items()}, counters


def _policy(fd: int, ids: Sequence[int]) -> dict[int, int]:
    found = {ident: progarray.program_at(fd, ident) for ident in ids}
    return {ident: program for ident, program in found.items() if program is not None}
