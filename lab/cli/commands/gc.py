"""`reloadlab gc`: delete expired connections."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.cli.targets import add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.agent.collector import Collected


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "gc",
        description="Delete expired connections from the datapath's maps, once: what Cilium's agent does at intervals. "
        "Open connections, and packets on their way, are not affected.",
    )
    add_targets(parser, endpoints=False, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per map")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and print a line per map."""
    from datapath.base.mapnames import CT_MAPS
    from lab.agent.collector import collect
    from lab.node.maps import MapNotLoaded

    check_targets([args.target], endpoints=False)
    require("root")
    rows = []
    for node in (target.node for target in find_targets([args.target])):
        with node.lock_shared():
            found = collect(node.datapath_config().globals)
        if not found:
            raise MapNotLoaded(node.name, CT_MAPS[0])
        rows += [_row(node.name, item) for item in found]
    if args.json:
        print_json(rows)
    else:
        from lab.cli.tables import print_table, table_of

        print_table(table_of(rows))
    return 0


def _row(name: str, item: Collected) -> dict[str, object]:
    return {
        "lab": name,
        "map": item.map,
        "scanned": item.scanned,
        "deleted": item.deleted,
        "alive": item.alive,
    }
