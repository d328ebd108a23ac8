"""`reloadlab bench`: measurements, each against something that does the same work."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.endpoint import Attachment
from lab.agent.options import check_library
from lab.cli.datapath import add_attach_option, add_define_option, add_source_options, check_attach
from lab.cli.targets import BadOption, count, print_json
from lab.doctor.doctor import require

if TYPE_CHECKING:
    from argparse import _SubParsersAction

TOPOLOGY_PODS = (10, 100, 250)


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and the measurements there are."""
    parser = subparsers.add_parser(
        "bench",
        description="Measure, in turns with another way of doing the same. Figures are printed, none is a verdict.",
    )
    benches = parser.add_subparsers(dest="bench", required=True, metavar="WHAT", help="what is measured")
    _add_topology(benches)
    _add_reload(benches)
    _add_traffic(benches)
    _add_gates(benches)
    # A further measurement is one more `_add_...` here, with a function that runs it.


def _add_topology(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "topology",
        help="a node up and down, next to a script of `ip netns` and `ip -batch`",
        description="Time for a node to come up and to go down, next to a shell script that makes the same one.",
    )
    parser.add_argument(
        "--pods", type=_counts, default=TOPOLOGY_PODS, metavar="N,N,...", help="pods of the nodes (10,100,250)"
    )
    _add_common(parser, rounds=5)
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
    add_define_option(parser)
    parser.add_argument(
        "--loader",
        dest="loaders",
        action="append",
        default=[],
        metavar="NAME|COMMAND",
        help="instead of all that: a reload by this loader, next to others; may be repeated",
    )
    add_attach_option(parser)
    parser.add_argument("--pods", type=count, default=20, metavar="N", help="pods of the many reloads (20)")
    parser.add_argument(
        "--endpoint-routes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="programs on both hooks of a pod, as with endpoint routes (yes), or on one",
    )
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_reload)


def _add_traffic(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "traffic",
        help="packets between pods, with the programs on their way and without",
        description="What packets between two pods cost: UDP, TCP round trips, a TCP stream; without programs and with "
        "them, in either routing mode, with many rules, between two nodes, in turns; and the programs alone. One CPU "
        "does it all. --library or -D add a second build to the same rounds.",
    )
    add_source_options(parser)
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_traffic)


def _add_gates(benches: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = benches.add_parser(
        "gates",
        help="a system call stopped by a gate, and one under the filter that is not, next to one without a filter",
        description="What `reloadlab prove` and `faults` cost: one system call without a filter, under the filter but "
        "not stopped, and stopped and let go, each by a process of its own, in turns.",
    )
    _add_common(parser, rounds=20)
    parser.set_defaults(run=run_gates)


def _add_common(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    parser.add_argument(
        "--rounds", type=count, default=rounds, metavar="N", help=f"rounds in which all take turns ({rounds})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the figures of every round")


def run_traffic(args: argparse.Namespace) -> int:
    """Measure traffic between pods and print rates and ratios."""
    check_library(args.library)
    require("root", "clang", "ip")
    from lab.bench.pairs import Build
    from lab.bench.topology import isolate_mounts
    from lab.bench.traffic import TrafficOptions, measure_traffic
    from lab.cli.traffic_view import show, to_json

    library = args.library.resolve() if args.library is not None else None
    other = Build("second", library, tuple(args.defines)) if library is not None or args.defines else None
    isolate_mounts()
    report = measure_traffic(TrafficOptions(other, args.rounds), _progress)
    _progress("")
    if args.json:
        print_json(to_json(report))
    else:
        show(report)
        _warn(report.others)
    return 0


def run_reload(args: argparse.Namespace) -> int:
    """Measure reloads and print medians and ratios."""
    check_library(args.library)
    if args.loaders:
        return _run_loaders(args)
    require("root", "clang")
    check_attach(args.attach)
    from lab.bench.reload import ReloadOptions, measure_reload
    from lab.bench.topology import isolate_mounts
    from lab.cli.reload_view import show, to_json

    options = ReloadOptions(
        library=args.library.resolve() if args.library is not None else None,
        defines=tuple(args.defines),
        object=args.object,
        endpoint_routes=args.endpoint_routes,
        rounds=args.rounds,
        pods=args.pods,
        verifiers=max(os.cpu_count() or 1, 2),
        attach=args.attach or Attachment.TC,
    )
    isolate_mounts()
    report = measure_reload(options, _progress)
    _progress("")
    if args.json:
        print_json(to_json(report))
    else:
        show(report)
        _warn(report.others)
    return 0


def _run_loaders(args: argparse.Namespace) -> int:
    from lab.loaders.command import find_loader

    if args.object is not None:
        raise BadOption("--object is not loaded by other loaders: without --loader")
    loaders = tuple(find_loader(text) for text in args.loaders)
    require("root", "clang")
    check_attach(args.attach)
    from lab.bench.loaders import LoadersOptions, measure_loaders
    from lab.bench.topology import isolate_mounts
    from lab.cli.loaders_view import show, to_json

    library = args.library.resolve() if args.library is not None else None
    attach = args.attach or Attachment.TC
    options = LoadersOptions(loaders, library, tuple(args.defines), args.endpoint_routes, args.rounds, attach)
    isolate_mounts()
    report = measure_loaders(options, _progress)
    _progress("")
    if args.json:
        print_json(to_json(report))
    else:
        show(report)
        _warn(report.others)
    return 0


def run_gates(args: argparse.Namespace) -> int:
    """Measure the price of gates and print medians."""
    require("root", "notify")
    from lab.bench.gates import measure_gates
    from lab.cli.gates_view import show, to_json

    report = measure_gates(args.rounds, _progress)
    _progress("")
    if args.json:
        print_json(to_json(report))
    else:
        show(report)
        _warn(report.others)
    return 0


def run_topology(args: argparse.Namespace) -> int:
    """Measure nodes of several sizes and print medians and ratios."""
    require("root", "ip")
    from lab.bench.topology import isolate_mounts, measure_topology, start_time
    from lab.cli.topology_view import show, to_json

    isolate_mounts()
    start = start_time()
    rows = list(measure_topology(args.pods, args.rounds, _progress))
    _progress("")
    if args.json:
        print_json(to_json(rows, start))
    else:
        show(rows, start)
    return 0


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _warn(others: float) -> None:
    """Warn if other processes used so much of the CPUs (0 to 1) that the figures are unreliable."""
    from lab.bench.rounds import NOISY

    if others > NOISY:
        print(f"warning: other processes had {others:.0%} of the CPUs meanwhile: measure again")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)
