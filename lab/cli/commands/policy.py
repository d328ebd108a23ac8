"""`reloadlab policy`: apply policies to a lab, or print those in force."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.cli.datapath import require_compiler
from lab.cli.targets import BadOption, Target, add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.node.node import Node


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "policy",
        description="Replace the policies of a lab by those of a JSON file, in the form of CiliumNetworkPolicy: all of "
        "them, or none. Without a file print those in force, and the entries of the policy maps made from them.",
    )
    add_targets(parser, help="a lab, or a cluster: all its nodes; to print also one endpoint, such as demo/pod-1")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a JSON file: one policy, or a list")
    parser.add_argument("--clear", action="store_true", help="remove all policies: everything passes")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per node")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Apply and print."""
    check_targets([args.target])
    if args.file is not None and args.clear:
        raise BadOption("policy takes a file or --clear, not both")
    if "/" in args.target and (args.file is not None or args.clear):
        raise BadOption("policies are those of a whole lab: name no endpoint; a policy says which endpoints it selects")
    document: object = None
    if args.file is not None:
        from lab.agent import policyfile

        document = policyfile.load(args.file)
    elif args.clear:
        document = []
    require("root")
    targets = find_targets([args.target])
    if document is not None:
        _apply(targets, document)
    if args.json:
        print_json([_document(target) for target in targets])
    else:
        documents = [_document(target) for target in targets]
        # All nodes of a cluster have the same policies.
        for warning in dict.fromkeys(warning for document in documents for warning in document["warnings"]):
            print(f"reloadlab: warning: {warning}", file=sys.stderr)
        for target, found in zip(targets, documents, strict=True):
            _print(target.node, found)
    return 0


def _apply(targets: list[Target], document: object) -> None:
    from lab.agent.cluster import apply_policies
    from lab.agent.options import Options, open_agent

    pairs = [(target.node, Options.kept(target.node)) for target in targets]
    for _, options in pairs:
        require_compiler(options.clang)
    with cancel_on_signals() as cancel, ExitStack() as stack:
        apply_policies([stack.enter_context(open_agent(*pair)) for pair in pairs], document, cancel=cancel)


def _document(target: Target) -> dict[str, Any]:
    from lab.agent import enforcement, policyfile
    from lab.agent.policy import without_peers
    from lab.watch import mapview

    with target.node.lock_shared():
        rows, given = mapview.policy(target.node, target.endpoint), enforcement.document_of(target.node)
        known = enforcement.identities_of(target.node)
    policies = given if isinstance(given, list) else [] if given is None else [given]
    warnings = without_peers(policyfile.parse(policies), known)
    return {"lab": target.node.name, "policies": policies, "entries": rows, "warnings": warnings}


def _print(node: Node, document: dict[str, Any]) -> None:
    from datapath.endpoint import LABEL_HOST
    from lab.agent import enforcement, policyfile
    from lab.cli.tables import print_table, table_of
    from lab.node.topology import HOST

    policies, rows = policyfile.parse(document["policies"]), document["entries"]
    print(f"{node.name}: {', '.join(item.name for item in policies) or 'no policy: everything passes'}")
    if any(item.is_for(HOST, frozenset({LABEL_HOST})) for item in policies) and not enforcement.host_has_firewall(node):
        print(f"no program enforces the host's policy: reloadlab reload {node.name} -D ENABLE_HOST_FIREWALL")
    if rows:
        print_table(table_of(rows))
    else:
        print("nothing is loaded yet: the entries come with the first reload")
