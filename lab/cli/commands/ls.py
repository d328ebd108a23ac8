"""`reloadlab ls`: the labs there are."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from lab.doctor.doctor import require
from lab.errors import Status
from lab.node.registry import list_labs
from lab.node.status import LabStatus

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_REMEDY = {Status.BROKEN: "reloadlab down {name} removes it", Status.ELSEWHERE: "made in another mount namespace"}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("ls", description="List all labs, broken ones too.")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line per lab."""
    require("root")
    labs = list_labs()
    if args.json:
        print(json.dumps([asdict(lab) for lab in labs], indent=2))
    elif not labs:
        print("there is no lab; make one with: reloadlab up")
    else:
        width = max(len("NAME"), *(len(lab.name) for lab in labs))
        print(f"{'NAME':<{width}}  {'STATUS':<9}  {'PODS':>4}  {'ROUTES':<8}  {'NETWORK':<7}  IN USE BY")
        for lab in labs:
            print(_line(lab, width))
    return 0


def _line(lab: LabStatus, width: int) -> str:
    routes = {None: "-", True: "endpoint", False: "node"}[lab.endpoint_routes]
    network = {None: "-", True: "tunnel", False: "native"}[lab.tunnel]
    pods = "-" if lab.pods is None else str(lab.pods)
    used = " ".join(map(str, lab.pids)) or _REMEDY.get(lab.status, "-").format(name=lab.name)
    used += f" ({lab.reason})" if lab.reason else ""
    return f"{lab.name:<{width}}  {lab.status:<9}  {pods:>4}  {routes:<8}  {network:<7}  {used}"
