"""`reloadlab faults`: every system call of a reload fails, or is where the process dies."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable, Sequence
from functools import partial
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
    node_arguments,
    scenario_options,
    spread,
    teller,
)
from lab.cli.targets import BadOption, count, make_console, print_json
from lab.doctor.doctor import require
from lab.node import registry
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.gates.call import Call
    from lab.node.topology import NodeSpec
    from lab.proof.cases import Case, Faults
    from lab.proof.sweep import SweepResult

LAB = "faults"


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "faults",
        description="Build a node, and reload with a fault at each system call in turn: it fails, or the process is "
        "killed there. After each case the node must be entirely as before or as after a reload, packets of all kinds "
        "must be answered, and the next reload must succeed. Exit code 1 if a case was not survived, 3 if "
        "the traffic got no CPU to see it.",
    )
    add_action_options(parser)
    parser.add_argument(
        "--life",
        action="store_true",
        help="build, change and remove nodes instead: SUBJECTs are up, policy, pod-added, pod-removed, down (all)",
    )
    parser.add_argument(
        "--errno",
        metavar="LIST",
        help="errors with which calls fail, such as ENOMEM,EBUSY; all: each that a call can have (the likeliest one)",
    )
    parser.add_argument("--no-kill", dest="kill", action="store_false", help="do not kill the process at the calls")
    parser.add_argument("--kill", dest="only_kill", action="store_true", help="kill it, and have no call fail")
    parser.add_argument("--cancel", action="store_true", help="cancel it at each call (SIGTERM), and have no call fail")
    parser.add_argument(
        "--receives", action="store_true", help="what is read from netlink sockets fails as well: the request is done"
    )
    parser.add_argument("--calls", metavar="PATTERN", help="only calls like this: 'MAP_UPDATE cilium_calls_*'")
    parser.add_argument("--nth", type=count, metavar="N", help="only the Nth of the calls that look alike")
    parser.add_argument(
        "--sample", type=count, metavar="N", help="only N cases of each reload, spread evenly over its calls"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with every case that was not survived"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the cases, and print what came of them."""
    from lab.agent.options import check_library
    from lab.cli.proof_view import case_line, print_interrupted, print_sweep

    check_library(args.library)
    check_actions(args)
    options = scenario_options(args)
    other = args.switch or args.restore or args.reattach or args.changed
    if args.life and (other or args.library or args.defines):
        words = "--switch, --restore, --reattach, --with, --library, -D"
        raise BadOption(f"--life is that of nodes with our programs: without {words}")
    if args.only_kill and (args.errno or not args.kill):
        raise BadOption("--kill means kills alone: without --errno and --no-kill")
    if args.cancel and (args.errno or not args.kill):
        raise BadOption("--cancel means cancellations alone, or with --kill: without --errno and --no-kill")
    spec = own_node(args, LAB)
    do = _sweep_of(args, spec, options)
    require("root", "notify")
    check_attach(attachment(args))
    require_compiler(None)
    registry.sweep()
    console = make_console(stderr=args.json)
    find_pace(console)
    note = teller(console, case_line)
    done: list[Case] = []

    def on_case(case: Case) -> None:
        done.append(case)
        note(case)

    try:
        with cancel_on_signals() as cancel:
            result = do(faults=_faults(args), choose=partial(_chosen, args), on_case=on_case, cancel=cancel)
    except KeyboardInterrupt:
        print_interrupted(console, done)
        raise
    # What was found at the end as well.
    for case in result.cases:
        note(case)
    if not result.cases:
        raise BadOption(f"no call fits {args.calls or ''}{f', number {args.nth}' if args.nth else ''}".strip())
    print_sweep(console, result)
    if args.json:
        print_json(result.to_json())
    return exit_code(result)


def _sweep_of(args: argparse.Namespace, spec: NodeSpec, options: dict[str, Any]) -> Callable[..., SweepResult]:
    """Return what runs the cases that are asked for."""
    from lab.proof.life import stages, sweep_life
    from lab.proof.sweep import sweep

    if args.life:
        return partial(
            sweep_life,
            spec,
            stages(args.subjects, node_arguments(args)),
            loader=options["loader"],
            gated=options["gated"],
            attach=options["attach"],
        )
    return partial(sweep, spec, actions_of(args, spec), **options)


def _faults(args: argparse.Namespace) -> Faults:
    from lab.proof.cases import Faults

    alone = args.only_kill or args.cancel
    errnos = (lambda call: ()) if alone else _errnos(args)
    return Faults(errnos, kill=args.only_kill if alone else args.kill, cancel=args.cancel, receives=args.receives)


def _errnos(args: argparse.Namespace) -> Callable[[Call], Sequence[int]]:
    from lab.proof.errnos import errnos_of, first_errno_of

    if args.errno is None:
        return first_errno_of
    if args.errno == "all":
        return errnos_of
    numbers = []
    for name in args.errno.split(","):
        number = getattr(errno, name, None)
        if name not in errno.errorcode.values() or number is None:
            raise BadOption(f"--errno {name}: no such error; they are called ENOMEM, EBUSY, ...")
        numbers.append(number)
    return lambda call: numbers


def _chosen(args: argparse.Namespace, cases: Sequence[Case]) -> Sequence[Case]:
    found = [case for case in cases if args.calls is None or case.place.fits(args.calls)]
    found = [case for case in found if args.nth is None or case.place.nth == args.nth]
    return spread(found, args.sample)
