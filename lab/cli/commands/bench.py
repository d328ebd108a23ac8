"""`reloadlab bench`: measurements, each against something that does the same work."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.errors import ReloadlabError
from lab.agent.options import check_library
from lab.cli.datapath import define
from lab.cli.targets import make_console
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from lab.bench.topology import TopologyComparison

TOPOLOGY_PODS = (10, 100, 250)


class WrongNumber(ReloadlabError):
    """A count that makes no sense."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and the measurements there are."""
    parser = subparsers.add_parser("bench", description="Measure, next to another way of doing it.")
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT")
    _add_topology(benches)
    _add_reload(benches)
    _add_traffic(benches)
    # A further measurement is one more `_add_...` here, with a function that runs it.


def _add_topology(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "topology",
        help="a node up and down, next to a script of `ip netns` and `ip -batch`",
        description="Time for a node to come up and to go down, next to a shell script that makes the same one.",
    )
    parser.add_argument("--pods", type=_numbers, default=TOPOLOGY_PODS, metavar="N,N,...", help="default 10,100,250")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="interleaved rounds of both (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the times of every round")
    parser.set_defaults(run=run_topology)


def _add_reload(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "reload",
        help="one reload and many, next to the bare system calls and to tc",
        description="Time of one reload, next to its floor (the bare system calls, prepared before) and to tc doing "
        "the same work, in turns; the share of it that is the kernel's; and the time of many reloads.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--object", type=Path, metavar="FILE.o", help="this object, e.g. a bpf_lxc.o of Cilium's")
    source.add_argument("--library", type=Path, metavar="DIR", help="C sources instead of our own, e.g. Cilium's bpf/")
    parser.add_argument("-D", dest="defines", type=define, action="append", default=[], metavar="NAME[=VALUE]")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds in which all take turns (20)")
    parser.add_argument("--pods", type=int, default=20, metavar="N", help="pods that are reloaded as the many (20)")
    parser.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="programs on both hooks of a pod, as with endpoint routes (yes), or on one",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the times of every round")
    parser.set_defaults(run=run_reload)


def _add_traffic(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "traffic",
        help="packets between pods, with the programs on their way and without",
        description="What packets between two pods cost: UDP, TCP round trips, a TCP stream; without programs and with "
        "them, in either routing mode, with many rules, between two nodes, in turns; and the programs alone. One CPU "
        "does it all. --library or -D take a second build into the same rounds.",
    )
    parser.add_argument("--library", type=Path, metavar="DIR", help="next to our C sources these, e.g. Cilium's bpf/")
    parser.add_argument(
        "-D",
        dest="defines",
        type=define,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="macros of the second build, of --library or else of our own sources",
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="rounds in which all take turns (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the figures of every round")
    parser.set_defaults(run=run_traffic)


def run_traffic(args: argparse.Namespace) -> int:
    """Measure traffic between pods and print rates and ratios."""
    from lab.bench.pairs import Build
    from lab.bench.topology import leave_mount_namespace
    from lab.bench.traffic import TrafficOptions, measure_traffic
    from lab.bench.traffic_view import show, to_json

    if args.rounds < 1:
        raise WrongNumber("--rounds takes numbers from 1 on")
    check_library(args.library)
    require("root", "clang", "ip")
    library = args.library.resolve() if args.library is not None else None
    other = Build("second", library, tuple(args.defines)) if library is not None or args.defines else None
    leave_mount_namespace()
    report = measure_traffic(TrafficOptions(other, args.rounds), _progress)
    _progress("")
    if args.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        show(make_console(), report)
    return 0


def run_reload(args: argparse.Namespace) -> int:
    """Measure reloads and print medians and ratios."""
    from lab.bench.reload import ReloadOptions, measure_reload
    from lab.bench.reload_view import show, to_json
    from lab.bench.topology import leave_mount_namespace

    if args.rounds < 1 or args.pods < 1:
        raise WrongNumber("--rounds and --pods take numbers from 1 on")
    check_library(args.library)
    require("root", "clang")
    options = ReloadOptions(
        library=args.library.resolve() if args.library is not None else None,
        defines=tuple(args.defines),
        object=args.object,
        endpoint_routes=args.endpoint_routes,
        rounds=args.rounds,
        pods=args.pods,
        verifiers=max(os.cpu_count() or 1, 2),
    )
    leave_mount_namespace()
    report = measure_reload(options, _progress)
    _progress("")
    if args.json:
        print(json.dumps(to_json(report), indent=2))
    else:
        show(make_console(), report)
    return 0


def run_topology(args: argparse.Namespace) -> int:
    """Measure nodes of several sizes and print medians and ratios."""
    from lab.bench.topology import leave_mount_namespace, measure_topology, start_time

    if args.rounds < 1 or min(args.pods, default=0) < 1:
        raise WrongNumber("--rounds and --pods take numbers from 1 on")
    require("root", "ip")
    leave_mount_namespace()
    start = start_time()
    rows = []
    if not args.json:
        print("pods      lab up      script up  ratio    lab down    script down  ratio")
    for row in measure_topology(args.pods, args.rounds, _progress):
        rows.append(row)
        if not args.json:
            print(f"\r{row.pods:>4}  {_columns(row, 'up')} {_columns(row, 'down')}", flush=True)
    if args.json:
        print(json.dumps({"start_ms": round(start * 1e3, 1), "topology": [row.to_json() for row in rows]}, indent=2))
    else:
        print(f"medians of {args.rounds} rounds; ratio = script / lab, median of the pairs")
        print(
            f"within a running process; the command `up` adds {start * 1e3:.0f} ms for the interpreter and its imports"
        )
    return 0


def _columns(row: TopologyComparison, what: str) -> str:
    ours, script = row.median("lab", what) * 1e3, row.median("script", what) * 1e3
    return f"{ours:8.1f} ms  {script:10.1f} ms  {row.ratio(what):5.2f}"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}", end="", file=sys.stderr, flush=True)
