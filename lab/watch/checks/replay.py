"""The hooks, routes and links of a node at each moment: a snapshot, and the changes since."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_network

from datapath.kernel import hooks
from datapath.kernel.hooks import RTM_DELQDISC, RTM_DELTFILTER, RTM_NEWTFILTER, Direction
from datapath.kernel.netlink import NLM_F_REPLACE, RTM_NEWLINK
from datapath.kernel.routes import RTM_DELROUTE, RTM_NEWROUTE, main_route
from lab.watch.journal import Change
from lab.watch.snapshot import Snapshot

_RTM_DELLINK, _IFF_UP = 17, 0x1

Hook = tuple[int, Direction]
"""An interface's index and a direction."""


class Replay:
    """What is at the hooks, where routes of the main table lead, and which links are down, at one moment."""

    def __init__(self, start: Snapshot) -> None:
        self.down: set[int] = set()
        self._filters: dict[Hook, set[tuple[int, int]]] = {}
        self._routes: dict[tuple[bytes, int], set[int]] = {}
        spec = start.around.spec
        self._node_routes = {4: ip_network(spec.pod_cidr4), 6: ip_network(spec.pod_cidr6)}
        self.cilium_host = start.around.facts.cilium_host.ifindex
        for found in start.filters.values():
            for item in found:
                if item.is_ours and item.kind not in hooks.LINKED:
                    self._hook(item.ifindex, item.direction).add((item.priority, item.handle))
        for message in start.around.network.routes:
            self._route(message, gone=False, replaced=False)

    def programs(self, hook: Hook) -> int:
        """Return how many filters of ours are at a hook."""
        return len(self._filters.get(hook, ()))

    def direct(self, address: IPv4Address | IPv6Address) -> set[int]:
        """Return the interfaces to which host routes of the main table to an address lead."""
        return self._routes.get((address.packed, address.max_prefixlen), set())

    def has_node_route(self, address: IPv4Address | IPv6Address) -> bool:
        """Tell whether the node's pods are reached by cilium_host."""
        network = self._node_routes[address.version]
        return self.cilium_host in self._routes.get((network.network_address.packed, network.prefixlen), ())

    def apply(self, change: Change) -> set[int]:
        """Go on to the moment after a change; return the interfaces that it concerns."""
        if change.kind in (RTM_NEWTFILTER, RTM_DELTFILTER):
            return self._filter(change)
        if change.kind == RTM_DELQDISC:
            return self._qdisc(change)
        if change.kind in (RTM_NEWROUTE, RTM_DELROUTE):
            replaced = bool(change.flags & NLM_F_REPLACE)
            return self._route(change.message[16:], gone=change.kind == RTM_DELROUTE, replaced=replaced)
        return self._link(change) if change.kind in (RTM_NEWLINK, _RTM_DELLINK) else set()

    def _hook(self, ifindex: int, direction: Direction) -> set[tuple[int, int]]:
        return self._filters.setdefault((ifindex, direction), set())

    def _qdisc(self, change: Change) -> set[int]:
        ifindex = hooks.qdisc_of_hooks(change.message)
        if ifindex is None:
            return set()
        for direction in Direction:
            self._filters.pop((ifindex, direction), None)
        return {ifindex}

    def _filter(self, change: Change) -> set[int]:
        found = hooks.notified(change.message)
        if found is None or not found.is_local:
            return set()
        place = self._hook(found.ifindex, found.direction)
        if change.kind == RTM_NEWTFILTER and found.is_ours:
            place.add((found.priority, found.handle))
        elif found.handle:
            place.discard((found.priority, found.handle))
        else:  # all filters of a priority, or of the hook
            for key in [key for key in place if found.priority in (0, key[0])]:
                place.discard(key)
        return {found.ifindex}

    def _route(self, message: bytes, *, gone: bool, replaced: bool) -> set[int]:
        found = main_route(message)
        if found is None:
            return set()
        destination, interfaces = found
        leads = self._routes.setdefault(destination, set())
        concerned = leads.union(interfaces)
        if gone:
            leads.difference_update(interfaces)
        elif replaced:
            self._routes[destination] = set(interfaces)
        else:
            leads.update(interfaces)
        return concerned

    def _link(self, change: Change) -> set[int]:
        family, ifindex, flags = struct.unpack_from("=B3xiI", change.message, 16)
        if family:  # what a bridge says of its ports
            return set()
        if change.kind == RTM_NEWLINK and not flags & _IFF_UP:
            self.down.add(ifindex)
            return {ifindex}
        self.down.discard(ifindex)
        if change.kind == _RTM_DELLINK:
            # It takes its filters and routes with it, and the kernel does not tell of each.
            for direction in Direction:
                self._filters.pop((ifindex, direction), None)
            for leads in self._routes.values():
                leads.discard(ifindex)
        return {ifindex}
