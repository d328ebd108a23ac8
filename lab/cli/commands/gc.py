"""`reloadlab gc`: delete expired connections, or the compiled objects that are kept."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.cli.targets import BadOption, add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require
from lab.system.cache import CACHE_VARIABLE, cache_directory
from lab.system.words import plural

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.agent.collector import Collected


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "gc",
        description="Delete expired connections from the datapath's maps, once: what Cilium's agent does at intervals. "
        "Open connections, and packets on their way, are not affected. With --cache, delete the compiled objects that "
        "are kept for all labs instead.",
    )
    add_targets(parser, endpoints=False, optional=True, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--cache", action="store_true", help="delete the compiled objects; labs are not touched")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per map")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and print a line per map."""
    from datapath.base.mapnames import CT_MAPS
    from lab.agent.collector import collect
    from lab.node.maps import MapNotLoaded

    if (args.target is None) != args.cache:
        raise BadOption("name a lab, or the compiled objects with --cache: one of both")
    if args.cache:
        return _clear_cache(as_json=args.json)
    check_targets([args.target], endpoints=False)
    require("root")
    rows = []
    for node in (target.node for target in find_targets([args.target])):
        with node.lock_shared():
            found = collect(node.globals)
        if not found:
            raise MapNotLoaded(node.name, CT_MAPS[0])
        rows += [_row(node.name, item) for item in found]
    if args.json:
        print_json(rows)
    else:
        from lab.cli.tables import print_table, table_of

        print_table(table_of(rows))
    return 0


def _clear_cache(*, as_json: bool) -> int:
    from datapath.build.objectcache import ObjectCache

    directory = cache_directory()
    objects, size = (0, 0) if directory is None else ObjectCache(directory).clear()
    if as_json:
        print_json({"cache": None if directory is None else str(directory), "objects": objects, "bytes": size})
    elif directory is None:
        print(f"no objects are kept: {CACHE_VARIABLE} is empty")
    else:
        print(f"{plural(objects, 'object')} deleted from {directory}, {size / 1e6:.1f} MB")
    return 0


def _row(name: str, item: Collected) -> dict[str, object]:
    return {
        "lab": name,
        "map": item.map,
        "scanned": item.scanned,
        "deleted": item.deleted,
        "alive": item.alive,
    }
