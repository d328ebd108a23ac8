"""`reloadlab reload`: reload endpoints of a lab and print how long each step took."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapath.endpoint import XDP_MODES
from datapath.errors import ReloadlabError
from lab.cli.datapath import add_datapath_options, require_compiler, tell_not_supported, wanted_options
from lab.cli.targets import (
    NAMING,
    BadOption,
    Target,
    add_targets,
    check_targets,
    count,
    find_targets,
    number,
    print_json,
)
from lab.doctor.doctor import require
from lab.node.topology import check_xdp_mode
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.table import Table

    from datapath.reload.outcome import Outcome
    from lab.agent.agent import Agent, Failure
    from lab.agent.options import Options

FEW = 4
"""Up to so many endpoints, every step of each is printed; of more, a line each and a summary of the steps."""


@dataclass(frozen=True, slots=True)
class Results:
    """What became of the reloads, each with the name of its lab."""

    outcomes: Sequence[tuple[str, Outcome]]
    failures: Sequence[tuple[str, Failure]]
    elapsed_ns: int

    def to_json(self) -> dict[str, object]:
        """Return the results as a JSON object."""
        return {
            "elapsed_ns": self.elapsed_ns,
            "reloads": [{"lab": lab} | outcome.to_json() for lab, outcome in self.outcomes],
            "failures": [
                {"lab": lab, "subject": failure.subject, "error": str(failure.error)} for lab, failure in self.failures
            ],
        }


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "reload",
        description="Run the whole pipeline for endpoints: all of a lab, or those named. "
        f"A reload that fails or is interrupted (Ctrl-C) leaves the old programs running. {NAMING}",
    )
    add_targets(parser, several=True, help="what is reloaded: all of a lab, or endpoints")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="reload N endpoints at a time (1)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="switch the node to this routing mode while reloading it",
    )
    change.add_argument("--mtu", type=number, metavar="BYTES", help="change the MTU of all devices while reloading")
    change.add_argument("--tunnel-port", type=number, metavar="PORT", help="replace the tunnel device: this UDP port")
    change.add_argument(
        "--xdp",
        choices=("off", *XDP_MODES),
        metavar="MODE",
        help=f"attach the XDP programs in another mode while reloading: {', '.join(XDP_MODES)}, or off",
    )
    parser.add_argument("--steps", action="store_true", help=f"print every step also of more than {FEW} endpoints")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_datapath_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reload and print; 1 if any reload failed."""
    check_targets(args.targets)
    for option, value in (
        ("--endpoint-routes", args.endpoint_routes),
        ("--mtu", args.mtu),
        ("--tunnel-port", args.tunnel_port),
        ("--xdp", args.xdp),
    ):
        if value is not None and any("/" in text for text in args.targets):
            raise BadOption(f"{option} switches the whole node: name no endpoints")
    require("root")
    targets = find_targets(args.targets)
    started = time.monotonic_ns()
    done: list[tuple[str, Outcome | Failure]] = []
    try:
        _reload_all(targets, args, done)
    except ReloadlabError:
        # What other nodes went through is told all the same.
        if done:
            _tell(done, time.monotonic_ns() - started, args)
        raise
    return 1 if _tell(done, time.monotonic_ns() - started, args).failures else 0


def _tell(done: Sequence[tuple[str, Outcome | Failure]], elapsed_ns: int, args: argparse.Namespace) -> Results:
    """Print what became of the reloads, and return it."""
    from lab.agent.agent import Failure

    results = Results(
        [(lab, result) for lab, result in done if not isinstance(result, Failure)],
        [(lab, result) for lab, result in done if isinstance(result, Failure)],
        elapsed_ns,
    )
    if args.json:
        print_json(results.to_json())
    else:
        _print(results, all_steps=args.steps)
    for lab, failure in results.failures:
        print(f"reloadlab: {lab}/{failure.subject}: {failure.error}", file=sys.stderr)
    return results


def _reload_all(targets: Sequence[Target], args: argparse.Namespace, done: list[tuple[str, Outcome | Failure]]) -> None:
    """Reload node by node; nothing is begun before all names and compilers are known to be there.

    `done` is filled as it happens.
    """
    from lab.agent.options import Options, open_agent

    wanted = [(target, wanted_options(Options.kept(target.node), args)) for target in targets]
    for target, options in wanted:
        require_compiler(options.clang)
        open_agent(target.node, options).check(*target.endpoints)
    with cancel_on_signals() as cancel:
        for target, options in wanted:
            _reload(target, options, args, cancel, done)


def _reload(
    target: Target,
    options: Options,
    args: argparse.Namespace,
    cancel: threading.Event,
    done: list[tuple[str, Outcome | Failure]],
) -> None:
    """Reload one node, or endpoints of it; the node keeps the options with which all of it was loaded."""
    from lab.agent.agent import Failure
    from lab.agent.options import open_agent

    with open_agent(target.node, options, verifiers=args.verifiers) as agent:
        fits = agent.sync(partly=True, cancel=cancel)
        results = _change(agent, target.endpoints, args, cancel)
        done += [(target.node.name, result) for result in results]
        tell_not_supported(agent)
        if not target.endpoints and not any(isinstance(result, Failure) for result in results):
            options.keep(target.node)
        if not fits:
            agent.sync(cancel=cancel)


def _change(
    agent: Agent, endpoints: Sequence[str], args: argparse.Namespace, cancel: threading.Event
) -> Sequence[Outcome | Failure]:
    if args.endpoint_routes not in (None, agent.endpoint_routes):
        return agent.set_endpoint_routes(args.endpoint_routes, workers=args.workers, cancel=cancel)
    if args.xdp is not None:
        done = agent.set_xdp(check_xdp_mode(args.xdp) if args.xdp != "off" else None, cancel=cancel)
        others = [name for name in agent.subjects if name != done.subject]
        return [done, *agent.reload_many(others, workers=args.workers, cancel=cancel, skip_gone=True)]
    if args.mtu is not None:
        return agent.set_mtu(args.mtu, workers=args.workers, cancel=cancel)
    if args.tunnel_port is not None:
        return agent.set_tunnel_port(args.tunnel_port, workers=args.workers, cancel=cancel)
    return agent.reload_many(endpoints or agent.subjects, workers=args.workers, cancel=cancel, skip_gone=not endpoints)


def _print(results: Results, *, all_steps: bool) -> None:
    from lab.cli.tables import print_table

    if all_steps or len(results.outcomes) <= FEW:
        for lab, outcome in results.outcomes:
            print_table(_steps(lab, outcome))
    else:
        print_table(_endpoints(results.outcomes))
        print()
        print_table(_summary(results.outcomes))
    for lab, outcome in results.outcomes:
        for warning in outcome.warnings:
            print(f"reloadlab: warning: {lab}/{outcome.subject}: {warning}", file=sys.stderr)
        if outcome.migrated:
            print(f"{lab}/{outcome.subject}: migrated {', '.join(outcome.migrated)}")
    total = len(results.outcomes) + len(results.failures)
    print(f"{len(results.outcomes)} of {total} reloaded in {results.elapsed_ns / 1e6:.0f} ms")


def _steps(lab: str, outcome: Outcome) -> Table:
    from lab.cli.tables import make_table

    title = f"{lab}/{outcome.subject}: generation {outcome.generation}, {_ms(outcome.duration_ns)} ms"
    table = make_table("step", "on", "ms", figures=("ms",), title=title)
    for span in outcome.spans:
        table.add_row(span.step, span.target, _ms(span.duration_ns))
    return table


def _endpoints(outcomes: Sequence[tuple[str, Outcome]]) -> Table:
    from lab.cli.tables import make_table

    table = make_table("endpoint", "slowest step", "generation", "ms", figures=("generation", "ms"))
    for lab, outcome in outcomes:
        slowest = max(outcome.spans, key=lambda span: span.duration_ns)
        words = f"{slowest.step} {slowest.target}, {_ms(slowest.duration_ns)}"
        table.add_row(f"{lab}/{outcome.subject}", words, str(outcome.generation), _ms(outcome.duration_ns))
    return table


def _summary(outcomes: Sequence[tuple[str, Outcome]]) -> Table:
    import statistics

    from lab.cli.tables import make_table

    durations: defaultdict[str, list[int]] = defaultdict(list)
    for _, outcome in outcomes:
        for span in outcome.spans:
            durations[span.step].append(span.duration_ns)
    figures = ("times", "median ms", "longest ms")
    table = make_table("step", *figures, figures=figures)
    for step, found in durations.items():
        table.add_row(step, str(len(found)), _ms(statistics.median(found)), _ms(max(found)))
    return table


def _ms(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3f}"
