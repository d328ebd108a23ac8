"""`reloadlab plan`: the steps of a reload, without doing them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from datapath.reload.step import Plan
from lab.agent.options import Options, open_agent
from lab.cli.datapath import add_datapath_options, wanted_options
from lab.cli.targets import make_console, parse_target
from lab.doctor.doctor import require
from lab.node.node import Node

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "plan",
        description="Print what `reload` would do, step by step. Nothing is compiled, loaded or changed.",
    )
    parser.add_argument("target", metavar="LAB/ENDPOINT", help="e.g. demo/pod-1, demo/health, demo/host, demo/overlay")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_datapath_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    lab, endpoint = parse_target(args.target)
    require("root")
    node = Node.open(lab)
    with open_agent(node, wanted_options(Options.kept(node), args)) as agent:
        agent.check(endpoint)
        plan = agent.plan(endpoint)
    if args.json:
        print(json.dumps(_document(plan), indent=2))
    else:
        _print(plan)
    for warning in plan.warnings:
        print(f"reloadlab: warning: {warning}", file=sys.stderr)
    return 0


def _print(plan: Plan) -> None:
    from rich.table import Table

    table = Table("#", "step", "on", "what", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    for column in table.columns[1:3]:
        column.no_wrap = True
    table.columns[3].overflow = "fold"
    for number, (name, target, what) in enumerate(plan.describe(), 1):
        table.add_row(str(number), name, target, what)
    make_console().print(table)


def _document(plan: Plan) -> dict[str, object]:
    steps = [{"name": name, "target": target, "what": what} for name, target, what in plan.describe()]
    return {"subject": plan.subject, "endpoint": plan.endpoint_id, "steps": steps, "warnings": list(plan.warnings)}
