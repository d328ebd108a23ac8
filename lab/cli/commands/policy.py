"""`reloadlab policy`: let policies hold on a lab, or see which do."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.endpoint import LABEL_HOST
from lab.agent import enforcement, policyfile
from lab.agent.cluster import apply_policies
from lab.agent.options import Options, open_agent
from lab.cli.columns import columns
from lab.cli.datapath import require_compiler
from lab.cli.targets import BadOption
from lab.doctor.doctor import require
from lab.node import registry
from lab.node.node import Node
from lab.node.topology import HOST

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "policy",
        description="Replace the policies of a lab by those of a JSON file, in the form of CiliumNetworkPolicy: all of "
        "them, or none. Without a file print those that hold, and what became of them in the policy maps.",
    )
    parser.add_argument("lab", metavar="LAB", help="a lab, or the name of all nodes of a cluster")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    parser.add_argument("--clear", action="store_true", help="remove all policies: everything passes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Apply and print."""
    if args.file is not None and args.clear:
        raise BadOption("policy takes a file or --clear, not both")
    document: object = None
    if args.file is not None:
        document = policyfile.load(args.file)
    elif args.clear:
        document = []
    require("root")
    nodes = [Node.open(name) for name in registry.labs_of(args.lab)]
    if document is not None:
        options = [Options.kept(node) for node in nodes]
        for each in options:
            require_compiler(each.clang)
        with ExitStack() as stack:
            agents = [stack.enter_context(open_agent(*pair)) for pair in zip(nodes, options, strict=True)]
            apply_policies(agents, document)
    for node in nodes:
        with node.lock_shared():
            _print(node, as_json=args.json)
    return 0


def _print(node: Node, *, as_json: bool) -> None:
    from lab.watch import mapview

    rows, document = mapview.policy(node), enforcement.document_of(node)
    if as_json:
        print(json.dumps({"lab": node.name, "policies": document or [], "entries": rows}, indent=2))
        return
    policies = policyfile.parse(document) if document else ()
    print(f"{node.name}: {', '.join(item.name for item in policies) or 'no policy: everything passes'}")
    if any(item.is_for(HOST, frozenset({LABEL_HOST})) for item in policies) and not enforcement.host_has_firewall(node):
        print(f"nobody asks the host's policy: reloadlab reload {node.name} -D ENABLE_HOST_FIREWALL")
    print("\n".join(columns(rows)) or "nothing is loaded yet: the entries come with the first reload")
