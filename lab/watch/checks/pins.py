"""Invariants 2 and 9: the names under which maps are pinned, and who uses them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from datapath.base.mapnames import OVERLAY_CALLS_MAP, calls_map
from datapath.kernel.pins import RETIRED
from datapath.reload.plans import CILIUM_HOST, CILIUM_VXLAN
from lab.agent.agent import Agent
from lab.node.topology import HEALTH, HOST_ENDPOINT
from lab.watch.checks.text import difference
from lab.watch.snapshot import Snapshot, calls_maps
from lab.watch.violation import Violation

OWN_MAP = re.compile(r"cilium_(?P<kind>calls(?:_custom|_hostns|_netdev|_xdp)?|policy(?:_v2)?)_(?P<number>\d{5})")
"""The name of a map that belongs to one endpoint or device."""


def check_pins(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield leftover pins, and programs that use another calls map than their own pinned one (invariant 2)."""
    yield from (Violation(2, what) for what in _pins(agent, now))


def check_orphans(agent: Agent, now: Snapshot) -> Iterator[Violation]:
    """Yield the pins of endpoints and devices that are gone (invariant 9)."""
    yield from (Violation(9, what) for what in _orphans(agent, now))


def _pins(agent: Agent, now: Snapshot) -> Iterator[str]:
    yield from (f"pin {name} is left over" for name in now.pins if ":" in name and RETIRED not in name)
    yield from _retired(now)
    pinned = {ident: name for name, ident in calls_maps(now).items()}
    pods = {agent.node.pod(name) for name in (HEALTH, *(pod.name for pod in agent.node.pods))}
    wanted = {pod.ifname: calls_map(pod.endpoint_id) for pod in pods}
    wanted |= {CILIUM_HOST: calls_map(HOST_ENDPOINT, "hostns_"), CILIUM_VXLAN: OVERLAY_CALLS_MAP}
    for (ifname, direction), found in now.filters.items():
        for item in found:
            own = now.calls.intersection(now.maps_of(item.program_id)) if item.is_ours else ()
            name = wanted.get(ifname, calls_map(item.ifindex, "netdev_"))
            for ident in own:
                if ident not in pinned:
                    yield f"{ifname} {direction}: {item.name} uses a calls map that is not pinned"
                elif pinned[ident] != name:
                    yield f"{ifname} {direction}: {item.name} uses {pinned[ident]} instead of {name}"
    yield from _xdp(now, pinned)


def _xdp(now: Snapshot, pinned: Mapping[int, str]) -> Iterator[str]:
    for ifname, found in now.xdp.items():
        name = calls_map(now.around.network.links[ifname].ifindex, "xdp_")
        for item in found:
            for ident in now.calls.intersection(now.maps_of(item.program_id)) if item.is_ours else ():
                if pinned.get(ident) != name:
                    yield f"{ifname} xdp: {item.name} uses {pinned.get(ident, 'a calls map that is not pinned')}"


def _retired(now: Snapshot) -> Iterator[str]:
    """Yield replaced maps that no program uses, or that tell something else than those that have taken their place."""
    names = [name for name in now.pins if RETIRED in name]
    used = {ident for program in now.reachable for ident in now.maps_of(program)} if names else set()
    for name in names:
        present = name.partition(RETIRED)[0]
        if now.pins[name].id not in used:
            yield f"pin {name} is left over: no program uses it"
        if name in now.retired:
            slots, wanted = now.retired[name], now.policies.get(present, {})
            if slots != wanted:
                yield f"pin {name}: slots differ from those of the new array: {difference(wanted, slots)}"
        elif present in now.pins and now.pins[name].sizes == now.pins[present].sizes:
            old, new = now.pins[name].content or {}, now.pins[present].content or {}
            if old != new:
                yield f"pin {name}: content differs from that of the new map: {difference(new, old)}"


def _orphans(agent: Agent, now: Snapshot) -> Iterator[str]:
    """Yield the pins of endpoints and devices that are gone. A pin keeps its map, and a calls map its programs."""
    ids = {endpoint.id for endpoint in agent.node.endpoints()}
    devices = {item.ifindex for found in now.filters.values() for item in found if item.is_ours}
    links = now.around.network.links
    at_xdp = {links[name].ifindex for name in agent.config.devices if agent.config.xdp is not None and name in links}
    owners = {"calls_netdev": devices, "calls_xdp": at_xdp}
    for name in now.pins:
        match = OWN_MAP.fullmatch(name)
        if match and int(match["number"]) not in owners.get(match["kind"], ids):
            yield f"map {name} is pinned for an endpoint or device that is gone"
