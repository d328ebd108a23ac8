"""Invariant 14: what nobody declared has not changed: links, addresses, sysctls, routes of all tables, rules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from ipaddress import ip_network

from datapath.reload.plans import CILIUM_HOST, CILIUM_VXLAN
from lab.node.topology import PodFacts
from lab.watch.networkdiff import Difference, differences
from lab.watch.snapshot import Snapshot
from lab.watch.surroundings import Surroundings
from lab.watch.violation import Violation

_SHOWN = 8
_MTU = re.compile(r" mtu \d+")


def check_network(
    before: Snapshot, now: Snapshot, expected: Collection[str], *, foreign: bool = False
) -> Iterator[Violation]:
    """Yield what differs in the network of the node or of a pod, and contains none of the texts in `expected`.

    Declared are pods that came or went, and what the node's settings say: its routing mode, with the endpoints' own
    routes (invariant 5), its MTU, its tunnel device. A `foreign` loader may install own routes that say more, or less.
    """
    old, new = before.around, now.around
    own_xdp = {f"interface {name}: XDP programs" for name in {*before.xdp, *now.xdp} if _is_ours(name, before, now)}
    differing = (each for each in differences(old.network, new.network) if each.what not in own_xdp)
    found = [each for each in differing if not _is_declared(each, old, new, foreign=foreign)]
    yield from _told("", _without_mtu(found, old, new), expected)
    for name in old.inside.keys() & new.inside.keys():
        if _pod(old, name) == _pod(new, name):
            inside = _without_mtu(list(differences(old.inside[name], new.inside[name])), old, new)
            yield from _told(f"inside {name}: ", inside, expected)
    for what, was, has in (("namespace", old.namespaces, new.namespaces), ("mount", old.mounts, new.mounts)):
        pods = {name for each in _pods_that_changed(old, new) for name in (each.name, f"ns/{each.name}")}
        gone, added = sorted(was - has - pods), sorted(has - was - pods)
        yield from (Violation(14, f"{what} {each} is gone") for each in gone)
        yield from (Violation(9, f"{what} {each} is left over") for each in added)


def _is_ours(ifname: str, before: Snapshot, now: Snapshot) -> bool:
    """Tell whether an interface has had no XDP programs but ours: other checks look at those."""
    return all(each.is_ours for each in (*before.xdp.get(ifname, ()), *now.xdp.get(ifname, ())))


def _told(where: str, found: list[Difference], expected: Collection[str]) -> Iterator[Violation]:
    said = [text for text in (f"{where}{each}" for each in found) if not any(part in text for part in expected)]
    yield from (Violation(14, text) for text in said[:_SHOWN])
    if len(said) > _SHOWN:
        yield Violation(14, f"{where}{len(said) - _SHOWN} more differences of the network")


def _pod(around: Surroundings, name: str) -> PodFacts | None:
    pods = (around.facts.health, *around.facts.pods)
    return next((pod for pod in pods if pod.name == name), None)


def _pods_that_changed(old: Surroundings, new: Surroundings) -> set[PodFacts]:
    return set(old.facts.pods) ^ set(new.facts.pods)


def _is_declared(found: Difference, old: Surroundings, new: Surroundings, *, foreign: bool) -> bool:
    changed = _pods_that_changed(old, new)
    if found.ifname in {pod.ifname for pod in changed}:
        return True
    if found.ifname == CILIUM_VXLAN and old.facts.vxlan != new.facts.vxlan:
        return True
    if not found.main or not found.destination:
        return False
    switched = old.spec.endpoint_routes != new.spec.endpoint_routes
    pods = (*new.facts.pods, new.facts.health, *changed)
    own = {str(ip_network(address)): pod.ifname for pod in pods for address in (pod.ipv4, pod.ipv6)}
    if own.get(found.destination) == found.ifname:
        return switched or foreign
    if found.ifname != CILIUM_HOST or not switched:
        return False
    spec = new.spec
    node_route = (spec.pod_cidr4, spec.pod_cidr6, ip_network(spec.router4))
    return found.destination in {str(network) for network in node_route}


def _without_mtu(found: list[Difference], old: Surroundings, new: Surroundings) -> list[Difference]:
    """Leave out what differs in the MTU alone, if the MTU of the node was changed."""
    if old.spec.mtu == new.spec.mtu:
        return found
    without = Counter(_MTU.sub("", each.what) for each in found)
    return [
        each
        for each in found
        if not each.what.endswith(": MTU") and not (_MTU.search(each.what) and without[_MTU.sub("", each.what)] == 2)
    ]
