"""What is at the hooks of a node, and the calls maps that its packets go through and that no pin keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from datapath.base.bpftypes import MapType
from datapath.base.mapnames import POLICY_ARRAYS
from datapath.kernel import hooks, progarray
from datapath.kernel.hooks import Direction, Filter
from datapath.kernel.inventory import Known
from datapath.kernel.map import Map, pinned_maps
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.pins import RETIRED
from datapath.kernel.xdp import all_attached
from lab.node.node import Node
from lab.node.tcxhooks import pinned_links, tcx_programs
from lab.node.topology import NODE


def filters_of(node: Node, netlink: NetlinkSocket) -> dict[tuple[str, Direction], tuple[Filter, ...]]:
    """Return what runs at each hook of tc and tcx that has anything, in this order."""
    pins, found = pinned_links(node), {}
    for link in netlink.interfaces().values():
        for direction in Direction:
            by_link = tcx_programs(node, link.name, link.ifindex, direction, pins)
            if filters := (*by_link, *hooks.all_filters(netlink, link.ifindex, direction)):
                found[link.name, direction] = filters
    return found


def unpinned_calls_maps(node: Node, known: Known) -> frozenset[int]:
    """Return the ids of the calls maps that packets can be led through and that have no pin in the node's bpffs.

    Those are the maps of the programs at its hooks and in its policy arrays, and of their tail calls. `known` is what
    former calls have found.
    """
    with NetlinkSocket(node.netns(NODE)) as netlink:
        first = {each.program_id for found in filters_of(node, netlink).values() for each in found if each.program_id}
        first |= {each.program_id for found in all_attached(netlink).values() for each in found}
    pinned, endpoints = set(), [endpoint.id for endpoint in node.endpoints()]
    for directory, _, _ in os.walk(node.datapath_config().bpffs):
        for each in pinned_maps(Path(directory)):
            if each.info.type == MapType.PROG_ARRAY:
                pinned.add(each.info.id)
                first.update(_policy_programs(each, endpoints))
    return known.reach(first).calls - pinned


def _policy_programs(array: Map, endpoints: Iterable[int]) -> Iterator[int]:
    """Yield the programs of endpoints in a policy array, also in a replaced one; none of another array."""
    if array.name in POLICY_ARRAYS or RETIRED in array.name:
        for ident in endpoints:
            if (program := progarray.program_at(array.fd, ident)) is not None:
                yield program
