"""The programs at hooks of tcx and netkit of a node, in the form of filters, which all hooks are looked at by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from datapath.kernel import links, tcx
from datapath.kernel.hooks import ETH_P_ALL, Direction, Filter, filter_name
from datapath.kernel.links import NotALink
from lab.node.node import Node
from lab.node.topology import NODE


def tcx_programs(node: Node, ifname: str, ifindex: int, direction: Direction, pins: dict[int, str]) -> list[Filter]:
    """Return what a hook of tcx or netkit runs, in this order; nothing if the interface is gone.

    Kind `tcx` or `netkit`, priority and handle 0. The name is that of a filter, `<program>-<interface>`, if its link
    has a pin (`pinned_links`): the kernel itself keeps 15 characters of the program's alone.
    """
    place = (ifindex, direction, 0, ETH_P_ALL, 0)
    return [
        Filter(*place, found.kind, _name(found, ifname, pins), found.entry.program_id)
        for found in tcx.programs_if_there(node.netns(NODE), ifindex, direction)
    ]


def pinned_links(node: Node) -> dict[int, str]:
    """Return the program names of the pins of all links of a node, by the id of the link."""
    config = node.datapath_config()
    return {ident: path.name for path, ident in _pins(config.links)}


def _name(found: tcx.TcxProgram, ifname: str, pins: dict[int, str]) -> str:
    pinned = pins.get(found.entry.link_id)
    return found.name if pinned is None else filter_name(pinned, ifname)


def _pins(directory: Path) -> Iterator[tuple[Path, int]]:
    for at, _, names in os.walk(directory):
        for name in names:
            path = Path(at, name)
            try:
                with links.pinned(path) as fd:
                    if fd is not None:
                        yield path, links.info(fd).id
            except NotALink:  # what else is pinned there is told as a pin
                continue
