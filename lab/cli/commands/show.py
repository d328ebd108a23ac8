"""`reloadlab show`: a drawing of a node."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from datapath.names import check_lab_name
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "show",
        description="Draw a node: interfaces, addresses, programs per hook, routes, endpoints.",
    )
    parser.add_argument("lab", metavar="LAB")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at the node and draw it."""
    # Decoding what the kernel says takes half of pyroute2, which the other commands need not wait for.
    from lab.cli.drawing import draw
    from lab.node.node import Node
    from lab.node.view import look

    check_lab_name(args.lab)
    require("root")
    node = Node.open(args.lab)
    with node.lock_shared():
        view = look(node)
    print(json.dumps(view.to_json(), indent=2) if args.json else draw(view))
    return 0
