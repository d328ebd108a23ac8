"""`reloadlab monitor`: drops, traces and policy verdicts as they happen."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING

from datapath.names import check_lab_name
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

KINDS = ("drop", "trace", "policy-verdict")
_TICK = 0.5


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "monitor",
        description="Print the events of the datapath as they happen, a line each, until Ctrl-C.",
    )
    parser.add_argument("lab", metavar="LAB")
    parser.add_argument("--type", choices=KINDS, action="append", metavar="|".join(KINDS), help="only these")
    parser.add_argument("--from", dest="endpoint", metavar="ENDPOINT", help="only those of the programs of pod-1, ...")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after N seconds")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print events until the time is over or somebody interrupts."""
    from lab.node.node import Node
    from lab.watch.events import Drop, Lost, Trace, Verdict, to_json
    from lab.watch.monitor import Monitor

    check_lab_name(args.lab)
    require("root")
    node = Node.open(args.lab)
    wanted = tuple({"drop": Drop, "trace": Trace, "policy-verdict": Verdict}[kind] for kind in args.type or KINDS)
    endpoint = None if args.endpoint is None else node.endpoint(args.endpoint).id
    deadline = None if args.seconds is None else time.monotonic() + args.seconds
    with node.lock_shared(), Monitor(node) as monitor:
        while deadline is None or time.monotonic() < deadline:
            left = _TICK if deadline is None else min(_TICK, max(deadline - time.monotonic(), 0))
            for event in monitor.read(left):
                # What was lost may have been of any type.
                if isinstance(event, Lost) or (
                    isinstance(event, wanted) and endpoint in (None, getattr(event, "endpoint", None))
                ):
                    print(json.dumps(to_json(event)) if args.json else event, flush=True)
    return 0
