"""`reloadlab restore`: do what an agent does that starts on a node that runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datapath.errors import ReloadlabError
from lab.cli.datapath import add_datapath_options, require_compiler, tell_not_supported, wanted_options
from lab.cli.targets import add_targets, check_targets, count, find_targets, print_json
from lab.doctor.doctor import require
from lab.system.signals import cancel_on_signals

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.agent.restore import Restored


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "restore",
        description="Find the endpoints of a lab in its state directories, reload them, and then remove what belongs "
        "to endpoints that are gone: what Cilium's agent does when it starts. If a reload fails, nothing is removed.",
    )
    add_targets(parser, several=True, endpoints=False, help="a lab, or a cluster: all its nodes")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="reload N endpoints at a time (1)")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per lab")
    add_datapath_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Restore node by node and print; 1 if an endpoint is lost."""
    from lab.agent.options import Options, open_agent

    check_targets(args.targets, endpoints=False)
    require("root")
    wanted = [(node, wanted_options(Options.kept(node), args)) for node in (t.node for t in find_targets(args.targets))]
    for _, options in wanted:
        require_compiler(options.clang)
    done: list[tuple[str, Restored]] = []
    try:
        with cancel_on_signals() as cancel:
            for node, options in wanted:
                with open_agent(node, options, verifiers=args.verifiers) as agent:
                    done.append((node.name, agent.restore(workers=args.workers, cancel=cancel)))
                    tell_not_supported(agent)
                options.keep(node)
    except ReloadlabError:
        # What other labs went through is told all the same.
        if done:
            _tell(done, args)
        raise
    _tell(done, args)
    return 1 if any(restored.lost for _, restored in done) else 0


def _tell(done: Sequence[tuple[str, Restored]], args: argparse.Namespace) -> None:
    if args.json:
        print_json([_document(name, restored) for name, restored in done])
    else:
        for name, restored in done:
            _print(name, restored)
    for name, restored in done:
        for subject, why in restored.lost.items():
            print(f"reloadlab: {name}/{subject}: not restored: {why}", file=sys.stderr)


def _document(name: str, restored: Restored) -> dict[str, object]:
    return {
        "lab": name,
        "reloads": [outcome.to_json() for outcome in restored.outcomes],
        "anew": restored.anew,
        "lost": restored.lost,
        "removed": list(restored.removed),
    }


def _print(name: str, restored: Restored) -> None:
    for outcome in restored.outcomes:
        for warning in outcome.warnings:
            print(f"reloadlab: warning: {name}/{outcome.subject}: {warning}", file=sys.stderr)
    for subject, why in restored.anew.items():
        print(f"reloadlab: warning: {name}/{subject}: {why}: loaded like a new one", file=sys.stderr)
    for what in restored.removed:
        print(f"{name}: removed {what}")
    total = len(restored.outcomes) + len(restored.lost)
    print(f"{name}: {len(restored.outcomes)} of {total} restored")
