"""`reloadlab prefilter`: deny prefixes at XDP, allow them again, or print those that are denied."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lab.cli.datapath import require_compiler
from lab.cli.targets import add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.node.node import Node


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "prefilter",
        description="Have the XDP programs of a lab (up --xdp, reload --xdp) drop all packets from a prefix, whatever "
        "the policies say, or allow it again; print the prefixes that are denied. All of one call holds on all nodes "
        "of a cluster, or none of it.",
    )
    add_targets(parser, endpoints=False, help="a lab, or a cluster: all its nodes")
    for name, words in (("deny", "drop what comes from this prefix"), ("allow", "let this prefix pass again")):
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="PREFIX", help=f"{words}; may be repeated"
        )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per node")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Deny and allow in one change, and print."""
    from lab.agent import prefilter

    check_targets([args.target], endpoints=False)
    prefilter.parse([*args.deny, *args.allow])
    require("root")
    nodes = [target.node for target in find_targets([args.target])]
    if args.deny or args.allow:
        _change(nodes, args)
    if args.json:
        print_json([{"lab": node.name, "denied": [str(each) for each in prefilter.stored(node)]} for node in nodes])
        return 0
    for node in nodes:
        print(f"{node.name}: {', '.join(str(each) for each in prefilter.stored(node)) or 'nothing is denied'}")
        if not node.spec.devices:
            print(
                "no program asks for it, nor has the node a native device: build it with up --devices eth0 --xdp native"
            )
        elif node.spec.xdp is None:
            print(f"no program asks for it: reloadlab reload {node.name} --xdp native")
    return 0


def _change(nodes: list[Node], args: argparse.Namespace) -> None:
    from lab.agent.cluster import change_denied
    from lab.agent.options import Options, open_agent

    pairs = [(node, Options.kept(node)) for node in nodes]
    for _, options in pairs:
        require_compiler(options.clang)
    with cancel_on_signals() as cancel, ExitStack() as stack:
        agents = [stack.enter_context(open_agent(*pair)) for pair in pairs]
        change_denied(agents, deny=args.deny, allow=args.allow, cancel=cancel)
