"""`reloadlab prove`: packets of all kinds at every system call of a reload."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.cli.datapath import require_compiler
from lab.cli.networks import own_node
from lab.cli.proofs import actions_of, add_action_options, check_actions
from lab.cli.targets import count, make_console, print_json
from lab.doctor.doctor import require
from lab.node import registry
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

LAB = "proof"


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "prove",
        description="Build a node, and stop each of its reloads before every system call until packets of all kinds "
        "were answered: old and new connections, IPv4 and IPv6, and what must be denied. Exit code 1 if one was lost, "
        "got where it must not, or took another way.",
    )
    parser.add_argument("--rounds", type=count, default=1, metavar="N", help="all of it N times (1)")
    add_action_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every call")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prove the reloads, and print what came of it."""
    from lab.agent.options import check_library
    from lab.cli.proof_view import print_proof
    from lab.proof.prove import prove

    check_library(args.library)
    check_actions(args)
    spec = own_node(args, LAB)
    actions = actions_of(args, spec)
    require("root", "notify")
    require_compiler(None)
    registry.sweep()
    console = make_console(stderr=args.json)
    sources = {"library": args.library, "defines": tuple(args.defines)}
    with cancel_on_signals() as cancel:
        proof = prove(spec, actions, rounds=args.rounds, cancel=cancel, **sources)
    print_proof(console, proof)
    if args.json:
        print_json(proof.to_json())
    return 0 if proof.holds else 1
