"""`reloadlab down`: remove labs, in whatever state they are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lab.cli.targets import BadOption, add_targets, check_targets, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("down", description="Remove labs, broken ones too.")
    add_targets(parser, several=True, endpoints=False, optional=True, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--all", action="store_true", help="remove all labs")
    parser.add_argument("--force", action="store_true", help="also labs that are in use at this moment")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove the labs that were named; the first failure is told after all others are gone."""
    from lab.node import registry

    if bool(args.targets) == args.all:
        raise BadOption("down takes the names of labs, or --all")
    check_targets(args.targets, endpoints=False)
    require("root")
    names = [lab for name in args.targets for lab in registry.labs_of(name)]
    removed, failure = (
        registry.remove_all(force=args.force) if args.all else registry.remove_each(names, force=args.force)
    )
    if args.json:
        print_json({"removed": list(removed)})
    else:
        for name in removed:
            print(f"{name} is gone")
        if args.all and not removed and failure is None:
            print("there are no labs")
    if failure is not None:
        raise failure
    return 0
