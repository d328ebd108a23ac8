"""`reloadlab reload`: reload endpoints of a lab and print how long each step took."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datapath.reload.outcome import Outcome
from lab.agent.agent import Failure
from lab.agent.options import Options, open_agent
from lab.cli.datapath import add_datapath_options, require_compiler, wanted_options
from lab.cli.targets import BadOption, count, make_console
from lab.doctor.doctor import require
from lab.node.node import Node
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.table import Table

FEW = 4
"""Up to so many endpoints, every step of each is printed; of more, a line each and a summary of the steps."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "reload",
        description="Run the whole pipeline for endpoints of a lab: all of them, or those named. "
        "A reload that fails or is interrupted (Ctrl-C) leaves the old programs running.",
    )
    parser.add_argument("lab", metavar="LAB")
    parser.add_argument("endpoint", nargs="*", metavar="ENDPOINT", help="pod-1, health, host, overlay; default: all")
    parser.add_argument("--parallel", type=count, default=1, metavar="N", help="reload N endpoints at a time (1)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="switch the whole node to this routing mode while reloading it",
    )
    change.add_argument("--mtu", type=int, metavar="BYTES", help="change the MTU of all devices while reloading")
    change.add_argument("--tunnel-port", type=int, metavar="PORT", help="make the tunnel device anew on this UDP port")
    parser.add_argument("--steps", action="store_true", help=f"print every step also of more than {FEW} endpoints")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_datapath_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reload and print; 1 if any reload failed."""
    changes = {
        "--endpoint-routes": args.endpoint_routes,
        "--mtu": args.mtu,
        "--tunnel-port": args.tunnel_port,
    }
    for option, value in changes.items():
        if args.endpoint and value is not None:
            raise BadOption(f"{option} switches the whole node: name no endpoints")
    require("root")
    node = Node.open(args.lab)
    options = wanted_options(Options.kept(node), args)
    require_compiler(options.clang)
    started = time.monotonic_ns()
    with cancel_on_signals() as cancel, open_agent(node, options, verifiers=args.verifiers) as agent:
        agent.check(*args.endpoint)
        agent.sync(cancel=cancel)
        results: Sequence[Outcome | Failure]
        if args.endpoint_routes not in (None, agent.endpoint_routes):
            results = agent.set_endpoint_routes(args.endpoint_routes, workers=args.parallel, cancel=cancel)
        elif args.mtu is not None:
            results = agent.set_mtu(args.mtu, workers=args.parallel, cancel=cancel)
        elif args.tunnel_port is not None:
            results = agent.set_tunnel_port(args.tunnel_port, workers=args.parallel, cancel=cancel)
        else:
            subjects = args.endpoint or agent.subjects
            results = agent.reload_many(subjects, workers=args.parallel, cancel=cancel)
    elapsed_ns = time.monotonic_ns() - started
    failures = [result for result in results if isinstance(result, Failure)]
    if not failures and not args.endpoint:
        options.keep(node)
    if args.json:
        print(json.dumps(_document(results, elapsed_ns), indent=2))
    else:
        _print(results, elapsed_ns, all_steps=args.steps)
    for failure in failures:
        print(f"reloadlab: {failure.subject}: {failure.error}", file=sys.stderr)
    return 1 if failures else 0


def _print(results: Sequence[Outcome | Failure], elapsed_ns: int, *, all_steps: bool) -> None:
    console = make_console()
    outcomes = [result for result in results if isinstance(result, Outcome)]
    if all_steps or len(outcomes) <= FEW:
        for outcome in outcomes:
            line = f"{outcome.subject}: generation {outcome.generation}, {_ms(outcome.duration_ns)} ms"
            console.print(f"[bold]{line}[/]")
            console.print(_steps(outcome))
    else:
        console.print(_endpoints(outcomes))
        console.print(_summary(outcomes))
    for outcome in outcomes:
        for warning in outcome.warnings:
            print(f"reloadlab: warning: {outcome.subject}: {warning}", file=sys.stderr)
        if outcome.migrated:
            console.print(f"{outcome.subject}: migrated {', '.join(outcome.migrated)}")
    console.print(f"{len(outcomes)} of {len(results)} reloaded in {elapsed_ns / 1e6:.0f} ms")


def _steps(outcome: Outcome) -> Table:
    table = _table("step", "on", "ms")
    for span in outcome.spans:
        table.add_row(span.step, span.target, _ms(span.duration_ns))
    return table


def _endpoints(outcomes: Sequence[Outcome]) -> Table:
    table = _table("endpoint", "slowest step", "generation", "ms")
    for outcome in outcomes:
        slowest = max(outcome.spans, key=lambda span: span.duration_ns)
        words = f"{slowest.step} {slowest.target}, {_ms(slowest.duration_ns)}"
        table.add_row(outcome.subject, words, str(outcome.generation), _ms(outcome.duration_ns))
    return table


def _summary(outcomes: Sequence[Outcome]) -> Table:
    durations: defaultdict[str, list[int]] = defaultdict(list)
    for outcome in outcomes:
        for span in outcome.spans:
            durations[span.step].append(span.duration_ns)
    table = _table("step", "", "times", "median ms", "longest ms")
    for step, found in durations.items():
        table.add_row(step, "", str(len(found)), _ms(statistics.median(found)), _ms(max(found)))
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"


def _document(results: Sequence[Outcome | Failure], elapsed_ns: int) -> dict[str, object]:
    return {
        "elapsed_ns": elapsed_ns,
        "reloads": [result.to_json() for result in results if isinstance(result, Outcome)],
        "failures": [
            {"subject": result.subject, "error": str(result.error)} for result in results if isinstance(result, Failure)
        ],
    }
