"""The datapath's maps of a node, opened by their pins."""

from __future__ import annotations

import errno
from pathlib import Path

from datapath.errors import BpfError
from datapath.kernel.map import Map, open_pin
from lab.errors import LabError
from lab.node.node import Node


class MapNotLoaded(LabError):
    """A map that does not exist yet, because no program that uses it has been loaded; `map` is its name."""

    def __init__(self, lab: str, name: str) -> None:
        super().__init__(lab, f"lab {lab} has no map {name}; load its programs with: reloadlab reload {lab}")
        self.map = name


def open_map(node: Node, name: str) -> Map:
    """Open a map of the node; MapNotLoaded if it is not pinned. The caller closes it."""
    opened = find_map(node, name)
    if opened is None:
        raise MapNotLoaded(node.name, name)
    return opened


def find_map(node: Node, name: str) -> Map | None:
    """Open a map of the node; None if it is not pinned. The caller closes it."""
    return open_if_pinned(node.datapath_config().globals / name)


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
