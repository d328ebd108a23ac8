"""`reloadlab ls`: the labs there are."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lab.cli.targets import add_targets, check_targets, print_json
from lab.doctor.doctor import require
from lab.errors import Status

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.node.status import LabStatus

_REMEDY = {Status.BROKEN: "reloadlab down {name} removes it", Status.ELSEWHERE: "made in another mount namespace"}


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("ls", description="List labs, broken ones too: all of them, or those named.")
    add_targets(parser, several=True, endpoints=False, optional=True, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line per lab."""
    check_targets(args.targets, endpoints=False)
    require("root")
    labs = _labs(args.targets)
    if args.json:
        print_json([_document(lab) for lab in labs])
    elif not labs:
        print("there are no labs; make one: reloadlab up")
    else:
        _print(labs)
    return 0


def _labs(names: list[str]) -> tuple[LabStatus, ...]:
    """Return all labs, or those of these names; LabNotFound for a name that stands for none."""
    from lab.errors import LabNotFound
    from lab.node import registry

    labs = registry.list_labs()
    if not names:
        return labs
    wanted = [lab for name in names for lab in registry.labs_of(name)]
    existing = tuple(lab.name for lab in labs)
    for name in wanted:
        if name not in existing:
            raise LabNotFound(name, existing)
    return tuple(lab for lab in labs if lab.name in wanted)


def _document(lab: LabStatus) -> dict[str, Any]:
    values = asdict(lab)
    return {"lab": values.pop("name"), **values}


def _print(labs: tuple[LabStatus, ...]) -> None:
    from lab.cli.tables import print_table, table_of

    print_table(
        table_of(
            [
                {
                    "lab": lab.name,
                    "status": str(lab.status),
                    "pods": lab.pods,
                    "routes": {None: None, True: "endpoint", False: "node"}[lab.endpoint_routes],
                    "network": {None: None, True: "tunnel", False: "native"}[lab.tunnel],
                    "in use by": _users(lab),
                }
                for lab in labs
            ]
        )
    )


def _users(lab: LabStatus) -> str:
    used = " ".join(map(str, lab.pids)) or _REMEDY.get(lab.status, "").format(name=lab.name)
    return f"{used} ({lab.reason})" if lab.reason else used
