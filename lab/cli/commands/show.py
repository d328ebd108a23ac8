"""`reloadlab show`: a drawing of a node, or of all nodes of a cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.cli.targets import add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "show",
        description="Draw a node: interfaces, addresses, programs per hook, routes, endpoints.",
    )
    add_targets(parser, endpoints=False, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per node")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at each node and draw it."""
    check_targets([args.target], endpoints=False)
    require("root")
    targets = find_targets([args.target])
    # What has to be imported to ask the kernel takes longer than to find out that there is no such lab.
    from lab.cli.drawing import draw
    from lab.node.view import look

    views = []
    for target in targets:
        with target.node.lock_shared():
            views.append(look(target.node))
    if args.json:
        print_json([view.to_json() for view in views])
    else:
        print("\n\n".join(map(draw, views)))
    return 0
