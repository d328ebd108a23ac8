"""Writes what the control plane knows into the maps of a node, and deletes what it knows no longer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from datapath.base import mapnames
from datapath.errors import MapTooSmall
from datapath.kernel.map import Map
from datapath.load.content import put
from datapath.load.maps import load_maps
from datapath.load.types import TypeStore
from datapath.object.spec import CollectionSpec
from datapath.reload import retired
from lab.abi import tables
from lab.abi.layouts import EndpointKey, IpcacheKey
from lab.abi.policymap import PolicyEntry
from lab.agent import contents, enforcement
from lab.node.maps import open_if_pinned
from lab.node.node import Node
from lab.node.topology import PodFacts


def fill(node: Node, target: Map) -> frozenset[bytes]:
    """Write what the control plane knows into a map, which may be new; return the keys.

    MapTooSmall, when all is written that fits.
    An entry of a policy map that says the same already stays, with its counters.
    """
    entries: contents.Entries = ()
    present: dict[bytes, bytes] = {}
    unpack = tables.POLICY.of(target).value.unpack if mapnames.is_policy_map(target.name) else None
    name = _name(target)
    if unpack is not None and (endpoint := mapnames.endpoint_of(name)) is not None:
        entries = contents.policy(node, target, endpoint)
        present = dict(target.items())
    elif name in contents.NODE_MAPS:
        entries = contents.NODE_MAPS[name](node, target)
    elif name in contents.PREFILTER_MAPS:
        entries = contents.PREFILTER_MAPS[name](node)
    written, left_out = set(), 0
    for key, value in entries:
        if key not in present or unpack is None or not _is_same_rule(unpack(present[key]), unpack(value)):
            left_out += not put(target, key, value)
        written.add(key)
    # What does not fit into a map that was replaced, by a larger one perhaps: its programs learn it when reloaded.
    if left_out and name == target.name:
        raise MapTooSmall(target.name, left_out, target.info.max_entries)
    return frozenset(written)


def _name(target: Map) -> str:
    """Return the name of a map, also of one that was moved aside or replaced."""
    return target.name.partition(":")[0]


def _is_same_rule(one: PolicyEntry, other: PolicyEntry) -> bool:
    """Tell whether two entries of a policy map differ in nothing but their counters."""
    return replace(one, packets=0, length=0) == replace(other, packets=0, length=0)


def fill_all(
    node: Node,
    pins: Path,
    host: CollectionSpec,
    *,
    types: TypeStore,
    create: bool = True,
    sweep: bool = True,
    partly: bool = False,
) -> bool:
    """Bring the maps that are pinned in `pins` in line with what is declared; the caller excludes other updates.

    Without `sweep` nothing is deleted.
    Without `create` maps that are missing are left to the reloads.
    Returns whether all of it fits, with `partly`; else a map that is too small is PolicyMapFull or MapTooSmall.
    Maps that are missing are created as `host`, the host's object, defines them, with the types of `types`; one of
    another shape stays as it is, for the programs that use it, until a reload replaces it. So does one of another
    name, which programs of another release use. What is new is written before what is stale goes, so that no packet
    finds less than before or after (cilium#10936).
    """
    fits = True
    mine = {name: item for name, item in host.maps.items() if item.pinned and name in contents.NODE_MAPS}
    with ExitStack() as stack:
        # Programs that are not reloaded yet go on with a map that another has replaced, or that has another name.
        pinned = [path for paths in retired.pinned(pins, tuple(contents.NODE_MAPS)).values() for path in paths]
        present = [stack.enter_context(opened) for path in pinned if (opened := open_if_pinned(path)) is not None]
        there = {opened.name for opened in present}
        missing = {name: item for name, item in mine.items() if create and name not in there}
        maps = load_maps(
            replace(host, maps=missing, programs={}), pins, types=types, fill=lambda new: _fill_new(node, new)
        )
        stack.callback(maps.close)
        policies = enforcement.stored(node)
        update = None
        if policies is not None:
            update = stack.enter_context(enforcement.PolicyUpdate(node, pins, policies, partly=partly))
            update.add()
            fits = update.fits
        for item in (*present, *maps.maps.values()):
            try:
                written = fill(node, item)
            except MapTooSmall:
                if not partly:
                    raise
                fits = False
                continue
            for key in [key for key in item.keys() if key not in written] if sweep else ():  # noqa: SIM118 - no dict
                item.delete(key)
        if update is not None and sweep:
            update.remove()
    return fits


def show_endpoints(node: Node, pins: Path) -> None:
    """Write the endpoints of a node into cilium_lxc, such as a pod that is loaded now; the caller excludes updates."""
    for path in (pins / mapnames.ENDPOINTS, *retired.others(pins, mapnames.ENDPOINTS)):
        opened = open_if_pinned(path)
        if opened is not None:
            with opened:
                fill(node, opened)


def forget(pins: Path, pod: PodFacts) -> None:
    """Delete the addresses of a pod from the maps that lead packets to it."""
    for name in (mapnames.ENDPOINTS, mapnames.IPCACHE, mapnames.IPCACHE_V2):
        for path in (pins / name, *retired.others(pins, name)):
            opened = open_if_pinned(path)
            if opened is None:
                continue
            with opened:
                for address in (pod.ipv4, pod.ipv6):
                    opened.delete(_key_of(opened, address))


def _key_of(opened: Map, address: IPv4Address | IPv6Address) -> bytes:
    """Return the key of a single address in cilium_lxc or cilium_ipcache."""
    if _name(opened) == mapnames.ENDPOINTS:
        return tables.ENDPOINTS.of(opened).key.pack(EndpointKey(address))
    return tables.IDENTITIES.of(opened).key.pack(IpcacheKey(address, address.max_prefixlen))


def _fill_new(node: Node, target: Map) -> None:
    fill(node, target)
