"""`reloadlab prove`: packets of all kinds at every system call of a reload."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lab.cli.datapath import check_attach, require_compiler
from lab.cli.networks import own_node
from lab.cli.pace import find_pace
from lab.cli.proofs import (
    actions_of,
    add_action_options,
    attachment,
    check_actions,
    exit_code,
    scenario_options,
    spread,
    teller,
)
from lab.cli.targets import BadOption, count, make_console, print_json
from lab.doctor.doctor import require
from lab.loaders.command import find_loader
from lab.node import registry
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.proof.cases import Place

LAB = "proof"


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "prove",
        description="Build a node, and stop each of its reloads before every system call until packets of all kinds "
        "were answered: old and new connections, IPv4 and IPv6, and what must be denied. Exit code 1 if one was lost, "
        "got where it must not, or took another way; 3 if the traffic got no CPU to see it, or no "
        "call was stopped.",
    )
    parser.add_argument("--rounds", type=count, metavar="N", help="all of it N times (1)")
    parser.add_argument(
        "--two",
        action="store_true",
        help="reload two SUBJECTs at once, the first of which is stopped at each of its calls until the other is done",
    )
    parser.add_argument(
        "--beside", metavar="NAME|COMMAND", help="with --two: the loader that does the second reload (--loader)"
    )
    parser.add_argument("--calls", metavar="PATTERN", help="with --two: only at calls like this")
    parser.add_argument(
        "--sample", type=count, metavar="N", help="with --two: only at N calls of each pair, spread evenly"
    )
    add_action_options(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, with every call; --two: with every meeting that was not in order",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prove the reloads, and print what came of it."""
    from lab.agent.options import check_library
    from lab.cli.proof_view import print_proof
    from lab.proof.prove import prove

    check_library(args.library)
    check_actions(args)
    _check_two(args)
    options = scenario_options(args)
    if args.two:
        return _run_two(args, options)
    spec = own_node(args, LAB)
    actions = actions_of(args, spec)
    require("root", "notify")
    check_attach(attachment(args))
    require_compiler(None)
    registry.sweep()
    console = make_console(stderr=args.json)
    find_pace(console)
    with cancel_on_signals() as cancel:
        proof = prove(spec, actions, rounds=args.rounds or 1, cancel=cancel, **options)
    print_proof(console, proof)
    if args.json:
        print_json(proof.to_json())
    return exit_code(proof)


def _check_two(args: argparse.Namespace) -> None:
    if not args.two:
        if args.calls is not None or args.sample is not None or args.beside is not None:
            raise BadOption("--calls, --sample and --beside are about two reloads that meet: with --two")
    elif any((args.switch, args.restore, args.reattach, args.way, args.rounds, len(args.subjects) > 2)):
        others = "--switch, --restore, --reattach, --way and --rounds"
        raise BadOption(f"--two takes one SUBJECT, which is reloaded twice, or two; without {others}")


def _run_two(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from lab.cli.proof_view import meeting_line, print_meetings
    from lab.proof.actions import loaded_by, pairs
    from lab.proof.two import prove_two

    spec = own_node(args, LAB)
    wanted = pairs(spec, args.subjects, args.changed)
    if args.beside is not None:
        beside = find_loader(args.beside)
        wanted = [(first, loaded_by(second, beside)) for first, second in wanted]
    require("root", "notify")
    check_attach(attachment(args))
    require_compiler(None)
    registry.sweep()
    console = make_console(stderr=args.json)
    find_pace(console)
    note = teller(console, meeting_line)

    def choose(places: Sequence[Place]) -> Sequence[Place]:
        found = [place for place in places if args.calls is None or place.fits(args.calls)]
        if not found:
            raise BadOption(f"no call fits {args.calls}")
        return spread(found, args.sample)

    with cancel_on_signals() as cancel:
        found = prove_two(spec, wanted, choose=choose, on_meeting=note, cancel=cancel, **options)
    # What was found at the end as well.
    for meeting in found.meetings:
        note(meeting)
    print_meetings(console, found)
    if args.json:
        print_json(found.to_json())
    return exit_code(found)
