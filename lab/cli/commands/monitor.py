"""`reloadlab monitor`: drops, traces and policy verdicts as they happen."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lab.cli.targets import NAMING, add_targets, check_targets, find_targets, seconds
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.watch.events import Event

KINDS = ("drop", "trace", "policy-verdict")
_TICK = 0.5


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "monitor",
        description="Print the events of the datapath as they happen, a line each, until Ctrl-C. " + NAMING,
    )
    add_targets(parser, help="where the events come from: all programs of a lab, or those of one endpoint")
    parser.add_argument(
        "--type",
        choices=KINDS,
        action="append",
        metavar="TYPE",
        help=f"only events of this type: {', '.join(KINDS)}; may be repeated",
    )
    parser.add_argument("--seconds", type=seconds, metavar="N", help="end after N seconds")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print events until the time is over, the user interrupts, or a lab is gone."""
    from lab.node import registry
    from lab.watch.events import Drop, Lost, Trace, Verdict
    from lab.watch.monitor import Monitor

    check_targets([args.target])
    require("root")
    targets = find_targets([args.target])
    wanted = tuple({"drop": Drop, "trace": Trace, "policy-verdict": Verdict}[kind] for kind in args.type or KINDS)
    endpoints = [None if target.endpoint is None else target.node.endpoint(target.endpoint).id for target in targets]
    deadline = None if args.seconds is None else time.monotonic() + args.seconds
    with ExitStack() as stack:
        monitors = []
        for target in targets:
            stack.enter_context(target.node.lock_shared())
            monitors.append((target.node.name, stack.enter_context(Monitor(target.node))))
        while deadline is None or time.monotonic() < deadline:
            came = False
            left = _TICK if deadline is None else min(_TICK, max(deadline - time.monotonic(), 0))
            for (lab, monitor), endpoint in zip(monitors, endpoints, strict=True):
                for event in monitor.read(left / len(monitors)):
                    came = True
                    # What was lost may have been of any type.
                    if isinstance(event, Lost) or (
                        isinstance(event, wanted) and endpoint in (None, getattr(event, "endpoint", None))
                    ):
                        _print(lab if len(monitors) > 1 else "", lab, event, as_json=args.json)
            if not came:
                # Whoever removes a lab by force leaves rings behind that nobody fills.
                for target in targets:
                    registry.read_facts(target.node.name)
    return 0


def _print(label: str, lab: str, event: Event, *, as_json: bool) -> None:
    from lab.watch.events import to_json

    if as_json:
        print(json.dumps({"lab": lab} | to_json(event)), flush=True)
    else:
        print(f"{label}: {event}" if label else event, flush=True)
