"""`reloadlab maps`: the content of the datapath's maps, readable."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lab.cli.targets import BadOption, Target, add_targets, check_targets, count, find_targets, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

NAMES = ("ipcache", "lxc", "policy", "ct", "metrics", "tunnel", "node", "auth", "l2", "ratelimit")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "maps",
        description="Print what is in a map of the kernel at this moment: "
        "ipcache (identities), lxc (endpoints), policy, ct (connections), metrics, tunnel (nodes of pod networks). "
        "Only other C sources have node (ids of nodes), auth, l2 (announced addresses) and ratelimit.",
    )
    add_targets(parser, help="a lab, or a cluster: all its nodes; for policy also one endpoint, such as demo/pod-1")
    parser.add_argument("map", choices=NAMES, metavar="MAP", help=", ".join(NAMES))
    # The form of former versions, which had a second name here.
    parser.add_argument("former", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=count, metavar="N", help="print the first N entries of ct, which can be long")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per entry")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the map and print it."""
    check_targets([args.target])
    if args.former is not None:
        raise BadOption(f"name the endpoint with its lab: reloadlab maps {args.target}/{args.former} {args.map}")
    if "/" in args.target and args.map != "policy":
        raise BadOption(f"{args.map} is one map for all endpoints; only policy takes the name of one")
    if args.limit is not None and args.map != "ct":
        raise BadOption("--limit is for ct, whose tables can be long")
    require("root")
    targets = find_targets([args.target])
    rows = [{"lab": target.node.name} | row for target in targets for row in _read(target, args.map, args.limit)]
    if args.json:
        print_json(rows)
    elif not rows:
        print(f"{args.map} is empty")
    else:
        _print(rows, several=len(targets) > 1)
    return 0


def _read(target: Target, name: str, limit: int | None) -> list[dict[str, Any]]:
    from lab.watch import mapview

    with target.node.lock_shared():
        if name == "policy":
            return mapview.policy(target.node, target.endpoint)
        if name == "ct":
            return mapview.conntrack(target.node, limit)
        return mapview.MAPS[name](target.node)


def _print(rows: list[dict[str, Any]], *, several: bool) -> None:
    from lab.cli.tables import print_table, table_of

    if not several:
        rows = [{name: value for name, value in row.items() if name != "lab"} for row in rows]
    print_table(table_of(rows))
