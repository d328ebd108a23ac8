"""`reloadlab plan`: the steps of a reload, without doing them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lab.cli.datapath import add_datapath_options, wanted_options
from lab.cli.targets import NAMING, add_targets, check_targets, find_targets, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from datapath.reload.step import Plan


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "plan",
        description="Print what `reload` would do, step by step. Nothing is compiled, loaded or changed. " + NAMING,
    )
    add_targets(parser, several=True, help="what would be reloaded: all of a lab, or endpoints")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per reload")
    add_datapath_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plans."""
    from lab.agent.options import Options, open_agent

    check_targets(args.targets)
    require("root")
    plans: list[tuple[str, Plan]] = []
    for target in find_targets(args.targets):
        with open_agent(target.node, wanted_options(Options.kept(target.node), args)) as agent:
            agent.check(*target.endpoints)
            plans += [(target.node.name, agent.plan(name)) for name in target.endpoints or agent.subjects]
    if args.json:
        print_json([_document(lab, plan) for lab, plan in plans])
    else:
        _print(plans)
    for lab, plan in plans:
        for warning in plan.warnings:
            print(f"reloadlab: warning: {lab}/{plan.subject}: {warning}", file=sys.stderr)
    return 0


def _print(plans: list[tuple[str, Plan]]) -> None:
    from lab.cli.tables import add_row, make_table, print_table

    for number, (lab, plan) in enumerate(plans):
        table = make_table("#", "step", "on", "what", figures=("#",), title=f"{lab}/{plan.subject}")
        for step, words in enumerate(plan.describe(), 1):
            add_row(table, str(step), *words)
        if number:
            print()
        print_table(table)


def _document(lab: str, plan: Plan) -> dict[str, object]:
    steps = [{"name": name, "target": target, "what": what} for name, target, what in plan.describe()]
    return {
        "lab": lab,
        "subject": plan.subject,
        "endpoint_id": plan.endpoint_id,
        "steps": steps,
        "warnings": list(plan.warnings),
    }
