"""The datapath's maps of a node, opened by their pins."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from datapath.base.mapnames import calls_map, endpoint_of
from datapath.errors import BpfError
from datapath.kernel.inventory import reach, read_slots
from datapath.kernel.map import Map, open_pin
from lab.errors import LabError
from lab.node.node import Node
from lab.node.topology import HOST_ENDPOINT


class MapNotLoaded(LabError):
    """A map that does not exist, because no program that uses it has been loaded; `map` is its name.

    With `others`, programs were loaded that do not use it: those of a release that has no such map, say.
    """

    def __init__(self, lab: str, name: str, *, others: bool = False) -> None:
        why = "its programs do not use it" if others else f"load its programs with: reloadlab reload {lab}"
        super().__init__(lab, f"lab {lab} has no map {name}; {why}")
        self.map = name


def open_map(node: Node, name: str) -> Map:
    """Open a map of the node; MapNotLoaded if it is not pinned. The caller closes it."""
    opened = find_map(node, name)
    if opened is None:
        raise MapNotLoaded(node.name, name, others=endpoint_of(name) is None and _has_programs(node))
    return opened


def _has_programs(node: Node) -> bool:
    """Tell whether the host's programs are loaded, which are the first."""
    return (node.globals / calls_map(HOST_ENDPOINT, "hostns_")).exists()


def open_used(node: Node, names: Sequence[str], endpoint_id: int) -> Map:
    """Open the map that has one of several names: of more, the one that the endpoint's tail calls use, else the first.

    A reload with sources that have another name for it leaves one behind. MapNotLoaded, with the last name, if none is
    pinned. The caller closes it.
    """
    with ExitStack() as stack:
        # By descriptors: a reload moves pins aside and removes them.
        there = [stack.enter_context(opened) for name in names if (opened := find_map(node, name)) is not None]
        if not there:
            return open_map(node, names[-1])
        if len(there) > 1:
            used = _used_by(node, endpoint_id)
            there.sort(key=lambda opened: opened.info.id not in used)
        stack.pop_all()
    for other in there[1:]:
        other.close()
    return there[0]


def _used_by(node: Node, endpoint_id: int) -> frozenset[int]:
    """Return the ids of the maps that an endpoint's tail calls use."""
    calls = find_map(node, calls_map(endpoint_id, "hostns_" if endpoint_id == HOST_ENDPOINT else ""))
    if calls is None:
        return frozenset()
    with calls:
        return reach((read_slots(calls.fd) or {}).values()).maps


def find_map(node: Node, name: str) -> Map | None:
    """Open a map of the node; None if it is not pinned. The caller closes it."""
    return open_if_pinned(node.globals / name)


def open_if_pinned(path: Path) -> Map | None:
    """Open the map pinned at `path`; None if nothing is pinned there. The caller closes it.

    Every other failure is a BpfError.
    """
    try:
        return open_pin(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
