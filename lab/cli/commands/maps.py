"""`reloadlab maps`: the content of the datapath's maps, readable."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from datapath.names import check_lab_name
from lab.cli.columns import columns
from lab.cli.targets import BadOption, count
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NAMES = ("ipcache", "lxc", "policy", "ct", "metrics", "tunnel")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "maps",
        description="Print what the kernel has at this moment in a map: "
        "ipcache (identities), lxc (endpoints), policy, ct (connections), metrics, tunnel (nodes of pod networks).",
    )
    parser.add_argument("lab", metavar="LAB")
    parser.add_argument("map", choices=NAMES, metavar="|".join(NAMES))
    parser.add_argument("endpoint", nargs="?", metavar="ENDPOINT", help="only the policy of pod-1, health, host")
    parser.add_argument("--limit", type=count, metavar="N", help="print the first N entries of ct, which can be long")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the map and print it."""
    from lab.node.node import Node
    from lab.watch import mapview

    check_lab_name(args.lab)
    if args.endpoint is not None and args.map != "policy":
        raise BadOption(f"{args.map} is one map for all endpoints; only policy takes the name of one")
    if args.limit is not None and args.map != "ct":
        raise BadOption("--limit is for ct, whose tables can be long")
    require("root")
    node = Node.open(args.lab)
    with node.lock_shared():
        if args.map == "policy":
            rows = mapview.policy(node, args.endpoint)
        elif args.map == "ct":
            rows = mapview.conntrack(node, args.limit)
        else:
            rows = mapview.MAPS[args.map](node)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(columns(rows)) or f"{args.map} is empty")
    return 0
