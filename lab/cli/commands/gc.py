"""`reloadlab gc`: delete the connections whose lifetime is over."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from lab.doctor.doctor import require
from lab.node import registry

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.agent.collector import Collected


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "gc",
        description="Delete the connections whose lifetime is over from the datapath's maps, once: what Cilium's agent "
        "does at intervals. Connections that are open, and packets on their way, do not notice.",
    )
    parser.add_argument("lab", metavar="LAB", help="a lab, or the name of all nodes of a cluster")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and print a line per map."""
    from lab.abi.conntrack import CT_MAPS
    from lab.agent.collector import collect
    from lab.node.maps import MapNotLoaded
    from lab.node.node import Node

    require("root")
    rows = []
    for name in registry.labs_of(args.lab):
        node = Node.open(name)
        with node.lock_shared():
            found = collect(node.datapath_config().globals)
        if not found:
            raise MapNotLoaded(name, CT_MAPS[0])
        rows += [(name, item) for item in found]
    if args.json:
        print(json.dumps([_row(name, item) for name, item in rows], indent=2))
    else:
        for name, item in rows:
            print(f"{name}: {item.map}: {item.deleted:,} of {item.scanned:,} connections were over, deleted")
    return 0


def _row(name: str, item: Collected) -> dict[str, object]:
    return {
        "lab": name,
        "map": item.map,
        "scanned": item.scanned,
        "deleted": item.deleted,
        "alive": item.alive,
    }
