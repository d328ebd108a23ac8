"""The prefixes whose packets a node's XDP programs deny, before anything else sees them (pkg/datapath/prefilter).

The node keeps them in a file of its state, so that maps which are made anew can be filled. A packet from one of them is
dropped whatever the policies say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from datapath.base import mapnames
from datapath.base.statefile import DamagedFile, read_typed, write_json
from datapath.errors import WrongCall
from datapath.kernel.map import Map
from datapath.load.content import put
from datapath.reload import retired
from lab.abi.layouts import LPM_VAL, cidr_key
from lab.agent.policy import Network
from lab.errors import system_errors
from lab.node import registry
from lab.node.maps import open_if_pinned
from lab.node.node import Node

MOST = 65536
"""Prefixes of a kind that fit (bpf/lib/config.h, CIDR4_HMAP_ELEMS and CIDR4_LMAP_ELEMS)."""

_FILE = "prefilter.json"
_DENIED = LPM_VAL.pack(0)


class BadPrefix(WrongCall):
    """A prefix that cannot be denied, or that is not denied and so cannot be allowed again."""


def parse(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return prefixes such as 192.0.2.0/24, 2001:db8::/32 or a single address; BadPrefix."""
    found = []
    for text in texts:
        try:
            found.append(ip_network(text))
        except ValueError as error:
            raise BadPrefix(f"{text!r} is not a prefix such as 192.0.2.0/24: {error}") from error
    return tuple(found)


def stored(node: Node) -> tuple[Network, ...]:
    """Return the prefixes that a node denies."""
    path = _path(node)
    try:
        return parse(read_typed(tuple[str, ...], path))
    except FileNotFoundError:
        return ()
    except BadPrefix as error:
        raise DamagedFile(path, str(error)) from error


def changed(present: tuple[Network, ...], more: tuple[Network, ...], less: tuple[Network, ...]) -> tuple[Network, ...]:
    """Return what is denied if `more` is denied as well and `less` no more; BadPrefix for one that is in both."""
    for network in more:
        if network in less:
            raise BadPrefix(f"{network} is to be denied and to be allowed: name it once")
    return remove(add(present, more), less)


def add(present: tuple[Network, ...], more: tuple[Network, ...]) -> tuple[Network, ...]:
    """Return all of them, each once; BadPrefix if they do not fit into the maps."""
    together = tuple(dict.fromkeys((*present, *more)))
    for name in mapnames.CIDR_MAPS:
        if (count := sum(map_of(network) == name for network in together)) > MOST:
            raise BadPrefix(f"{count} prefixes do not fit into {name}, which has room for {MOST}")
    return together


def remove(present: tuple[Network, ...], less: tuple[Network, ...]) -> tuple[Network, ...]:
    """Return those that remain; BadPrefix for one that is not denied."""
    for network in less:
        if network not in present:
            raise BadPrefix(f"{network} is not denied")
    return tuple(network for network in present if network not in less)


def store(node: Node, networks: tuple[Network, ...]) -> None:
    """Write down what a node denies."""
    with system_errors(node.name):
        write_json(_path(node), [str(network) for network in networks])


def map_of(network: Network) -> str:
    """Return the map that a prefix belongs into: whole addresses are in a hash of their own (PreFilter.selectMap)."""
    whole = network.prefixlen == network.max_prefixlen
    if isinstance(network, IPv4Network):
        return mapnames.CIDR4_FIX if whole else mapnames.CIDR4_DYN
    return mapnames.CIDR6_FIX if whole else mapnames.CIDR6_DYN


def entries(name: str, node: Node) -> Iterator[tuple[bytes, bytes]]:
    """Yield what belongs into one of the maps."""
    for network in stored(node):
        if map_of(network) == name:
            yield cidr_key(network), _DENIED


def sync(node: Node, pins: Path) -> None:
    """Bring the pinned maps in line with what is stored: what is new first, in all maps, then what is stale goes.

    So nothing gets through that is denied before and after, whichever map it is in. Maps that a killed reload has moved
    aside are written as well: programs may use them. What does not fit there is left out. A node without XDP programs
    has no such maps. The caller excludes other updates.
    """
    with ExitStack() as stack:
        maps: list[tuple[Map, dict[bytes, bytes], set[bytes]]] = []
        for name, paths in retired.pinned(pins, mapnames.CIDR_MAPS).items():
            wanted = dict(entries(name, node))
            for path in paths:
                opened = open_if_pinned(path)
                if opened is None:
                    continue
                stack.enter_context(opened)
                present = set(opened.keys())
                maps.append((opened, wanted, present))
                for new in wanted.keys() - present:
                    if path.name == name:
                        opened.update(new, wanted[new])
                    else:
                        put(opened, new, wanted[new])
        for opened, wanted, present in maps:
            for stale in present - wanted.keys():
                opened.delete(stale)


def _path(node: Node) -> Path:
    return node.root / registry.STATE / _FILE
