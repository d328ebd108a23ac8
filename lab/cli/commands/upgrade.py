"""`reloadlab upgrade`: labs go to other programs or another loader, and back, under traffic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.datapath import add_attach_option, add_define_option, check_attach, require_compiler
from lab.cli.pace import find_pace
from lab.cli.proofs import exit_code
from lab.cli.targets import BadOption, add_targets, check_targets, count, find_targets, make_console, print_json
from lab.doctor.doctor import require
from lab.loaders.command import BUILTIN, TC
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.agent.options import Options


BROKEN = ("fill-late", "keep-maps")
"""What can be broken: the functions of lab.agent.filling, in their order."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "upgrade",
        description="Start another agent on labs that are up, with other C sources or another loader, as an upgrade "
        "does. Each of its system calls is stopped until packets of all kinds were answered: old and new connections, "
        "IPv4 and IPv6, and what a policy must deny, between all nodes of a cluster. Exit code 1 if one was lost or "
        "got where it must not, 3 if the traffic got no CPU to see it, or no call was stopped.",
    )
    add_targets(
        parser, several=True, endpoints=False, help="a lab, or a cluster or some of its nodes, one after the other"
    )
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="DIR|NAME|COMMAND",
        help="C sources, such as Cilium's bpf/, or a loader as --loader takes it; give both for both",
    )
    add_define_option(parser)
    add_attach_option(parser)
    parser.add_argument("--back", action="store_true", help="and back to what the lab runs now")
    parser.add_argument(
        "--order",
        choices=("host", "pods"),
        default="host",
        metavar="host|pods",
        help="whose programs are loaded first: those of the host and the tunnel, or of the pods (host)",
    )
    parser.add_argument(
        "--at",
        default="",
        metavar="STEP|CALL",
        help="kill the agent, or the process of its loader, before this step or call; then begin anew, or with --back "
        "go back",
    )
    parser.add_argument("--nth", type=count, metavar="N", help="with --at: the Nth time that it comes (1)")
    parser.add_argument(
        "--break",
        dest="broken",
        choices=BROKEN,
        metavar="|".join(BROKEN),
        help="break the control plane: it fills new maps only when everything is loaded; or, with a loader that is not "
        "ours, keeps maps whose entries mean something else to the new programs",
    )
    parser.add_argument(
        "--no-new", action="store_true", help="no traffic by new connections, but for what a policy must deny"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every call")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upgrade, and print what came of it; 1 if anything did not hold."""
    from lab.agent.filling import filled_late, kept_maps
    from lab.agent.options import Options
    from lab.cli.proof_view import print_proof
    from lab.proof.upgrade import Upgrade
    from lab.proof.upgrade import run as run_upgrade

    check_targets(args.targets, endpoints=False)
    if args.nth is not None and not args.at:
        raise BadOption("--nth counts how often a step or call comes: with --at")
    require("root", "notify")
    check_attach(args.attach)
    nodes = [target.node for target in find_targets(args.targets)]
    to = {node.name: _wanted(Options.kept(node), args) for node in nodes}
    for options in to.values():
        require_compiler(options.clang)
    if args.broken == "keep-maps" and any(options.loader is None for options in to.values()):
        raise BadOption("--break keep-maps keeps the maps from a loader that is not ours: name one with --to")
    changes = dict(zip(BROKEN, (filled_late, kept_maps), strict=True))
    upgrade = Upgrade(
        to,
        back=args.back,
        pods_first=args.order == "pods",
        at=args.at,
        nth=args.nth or 1,
        change=changes.get(args.broken),
        creates_maps=args.broken != "fill-late",
        fresh=not args.no_new,
    )
    console = make_console(stderr=args.json)
    find_pace(console)
    with cancel_on_signals() as cancel:
        proof = run_upgrade(nodes, upgrade, cancel=cancel)
    print_proof(console, proof)
    if args.json:
        print_json(proof.to_json())
    return exit_code(proof)


def _wanted(kept: Options, args: argparse.Namespace) -> Options:
    """Return the options of a lab, with what --to names in their place."""
    from lab.agent.options import check_library

    libraries = [Path(text) for text in args.to if text not in (BUILTIN, TC) and Path(text).is_dir()]
    loaders = [text for text in args.to if text in (BUILTIN, TC) or not Path(text).is_dir()]
    if len(libraries) > 1 or len(loaders) > 1:
        raise BadOption("--to names one directory of C sources, and one loader")
    for library in libraries:
        check_library(library)
    return kept.replaced(
        library=libraries[0] if libraries else None,
        loader=loaders[0] if loaders else None,
        defines=tuple(args.defines),
        attach=args.attach,
    )
