"""Writes what the control plane knows into the maps of a node, and deletes what it knows no longer."""

from __future__ import annotations

from collections.abc import Container
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from datapath.base import mapnames
from datapath.kernel.map import Map, open_pin
from datapath.load.content import put
from datapath.load.maps import load_maps
from datapath.object.spec import CollectionSpec
from datapath.reload import retired
from lab.abi import layouts
from lab.abi.policymap import PolicyEntry
from lab.agent import contents, enforcement
from lab.node.node import Node
from lab.node.topology import PodFacts


def fill(node: Node, target: Map, *, without: Container[bytes] = ()) -> frozenset[bytes]:
    """Write what the control plane knows into a map, which may be new, but for some keys; return those written.

    An entry of a policy map that says the same already stays, with its counters.
    """
    entries: contents.Entries = ()
    present: dict[bytes, bytes] = {}
    name = _name(target)
    if name.startswith(mapnames.POLICY):
        entries = contents.policy(node, int(name.removeprefix(mapnames.POLICY)))
        present = dict(target.items())
    elif name in contents.NODE_MAPS:
        entries = contents.NODE_MAPS[name](node)
    elif name in contents.PREFILTER_MAPS:
        entries = contents.PREFILTER_MAPS[name](node)
    # What does not fit into a map that was replaced, by a larger one perhaps: its programs learn it when reloaded.
    write = put if name != target.name else Map.update
    written = set()
    for key, value in entries:
        if key in without:
            continue
        # A build may have appended words to key or value: they are zero.
        padded = key.ljust(target.info.key_size, b"\0")
        if padded not in present or not _is_same_rule(present[padded], value):
            write(target, padded, value.ljust(target.info.value_size, b"\0"))
        written.add(padded)
    return frozenset(written)


def _name(target: Map) -> str:
    """Return the name of a map, also of one that was moved aside or replaced."""
    return target.name.partition(":")[0]


def _is_same_rule(one: bytes, other: bytes) -> bool:
    """Tell whether two entries of a policy map differ in nothing but their counters."""
    first, second = (replace(PolicyEntry.unpack(value), packets=0, length=0) for value in (one, other))
    return first == second


def fill_all(
    node: Node, pins: Path, host: CollectionSpec, *, unloaded: PodFacts | None = None, sweep: bool = True
) -> None:
    """Bring the maps that are pinned in `pins` in line with what is declared; the caller excludes other updates.

    An `unloaded` pod is known to all maps but cilium_lxc: whoever finds it there delivers to it. Without `sweep`
    nothing is deleted.
    Maps that are missing are created as `host`, the host's object, defines them. What is new is written before what is
    stale goes, so that no packet finds less than before or after (cilium#10936).
    """
    hidden = frozenset(layouts.endpoint_key(a) for a in (unloaded.ipv4, unloaded.ipv6)) if unloaded is not None else ()
    mine = {name: item for name, item in host.maps.items() if item.pinned and name in contents.NODE_MAPS}
    with ExitStack() as stack:
        maps = load_maps(replace(host, maps=mine, programs={}), pins, fill=lambda new: _fill_new(node, new))
        stack.callback(maps.close)
        policies = enforcement.stored(node)
        update = None
        if policies is not None:
            update = stack.enter_context(enforcement.PolicyUpdate(node, pins, policies))
            update.add()
        # Programs that are not reloaded yet go on with the map that another has replaced.
        former = [stack.enter_context(open_pin(path)) for name in mine for path in retired.others(pins, name)]
        for item in (*maps.maps.values(), *former):
            written = fill(node, item, without=hidden if _name(item) == mapnames.ENDPOINTS else ())
            for key in [key for key in item.keys() if key not in written] if sweep else ():  # noqa: SIM118 - no dict
                item.delete(key)
        if update is not None and sweep:
            update.remove()


def forget(pins: Path, pod: PodFacts) -> None:
    """Delete the addresses of a pod from the maps that lead packets to it."""
    for address in (pod.ipv4, pod.ipv6):
        for name, key in (
            (mapnames.ENDPOINTS, layouts.endpoint_key(address)),
            (mapnames.IPCACHE, layouts.ipcache_key(address, address.max_prefixlen)),
        ):
            for path in (pins / name, *retired.others(pins, name)):
                with open_pin(path) as pinned:
                    pinned.delete(key.ljust(pinned.info.key_size, b"\0"))


def _fill_new(node: Node, target: Map) -> None:
    fill(node, target)
