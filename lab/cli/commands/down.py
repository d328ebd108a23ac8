"""`reloadlab down`: remove labs, in whatever state they are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from datapath.errors import ReloadlabError
from datapath.names import check_lab_name
from lab.doctor.doctor import require
from lab.node import registry

if TYPE_CHECKING:
    from argparse import _SubParsersAction


class NothingNamed(ReloadlabError):
    """Neither a lab nor --all was given, or both."""

    def __init__(self) -> None:
        super().__init__("down takes the names of labs, or --all")


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("down", description="Remove labs, broken ones too.")
    parser.add_argument("labs", nargs="*", metavar="LAB", help="a lab, or the name of all nodes of a cluster")
    parser.add_argument("--all", action="store_true", help="remove all labs")
    parser.add_argument("--force", action="store_true", help="also labs that somebody uses at this moment")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove the labs that were named; the first failure is told after all others are gone."""
    if bool(args.labs) == args.all:
        raise NothingNamed
    for name in args.labs:
        check_lab_name(name)
    require("root")
    names = [lab for name in args.labs for lab in registry.labs_of(name)]
    removed, failure = (
        registry.remove_all(force=args.force) if args.all else registry.remove_each(names, force=args.force)
    )
    for name in removed:
        print(f"{name} is gone")
    if args.all and not removed and failure is None:
        print("there is no lab")
    if failure is not None:
        raise failure
    return 0
