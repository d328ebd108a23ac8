"""`reloadlab run`: the main job. Doctor, all scenarios, the time of parallel reloads, a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.datapath import add_attach_option, add_loader_option, add_source_options
from lab.cli.expressions import expression
from lab.cli.targets import BadOption, count, file_path, whole_number
from lab.cli.vm_options import KERNELS_HELP, add_machine_options, kernel_list

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PODS, ROUNDS = 50, 3
"""Of the measurement of parallel reloads."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "run",
        description="Check the machine, run every scenario with traffic, measure parallel reloads, write a report. "
        "Exit code 1 if anything failed or was not run.",
        epilog="What follows -- is handed on to pytest, which then prints its own report: reloadlab run -- -x -v. "
        "--lf takes what had failed according to run.json.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="suites to run instead of ours")
    parser.add_argument(
        "-k", dest="select", type=expression, metavar="EXPRESSION", help="only scenarios that match, as in pytest"
    )
    parser.add_argument("--workers", type=_workers, default="auto", metavar="N", help="scenarios at a time (all CPUs)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where run.json goes (out)")
    parser.add_argument("--pods", type=count, default=PODS, metavar="N", help=f"pods of the measurement ({PODS})")
    parser.add_argument(
        "--rounds", type=whole_number, metavar="N", help=f"its rounds ({ROUNDS}; 0: none, as always with --on)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the labs of scenarios that fail, to look at them")
    parser.add_argument(
        "--pcap", type=Path, metavar="DIR", help="write the packets around each finding to this directory"
    )
    parser.add_argument(
        "--trace", action="store_true", help="write trace.json beside run.json: reloads and findings, for Perfetto"
    )
    parser.add_argument(
        "--junitxml",
        type=file_path,
        metavar="FILE",
        help="write JUnit XML, also if the run fails early or is interrupted",
    )
    parser.add_argument(
        "--summary",
        type=file_path,
        metavar="FILE",
        help="append Markdown, as for $GITHUB_STEP_SUMMARY; a file that is there keeps what it holds",
    )
    parser.add_argument(
        "--kernel",
        dest="kernels",
        type=kernel_list,
        metavar="KERNEL[,...]",
        help=f"do all that on other kernels, one after the other: {KERNELS_HELP}",
    )
    add_machine_options(parser, prefix="kernel-")
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="MACHINE",
        help="spread the scenarios over machines, as root there: ssh:HOST[,workers=N][,port=N][,config=FILE] or "
        "vagrant:NAME[,workers=N][,directory=DIR]; once for each (docs/machines.md)",
    )
    parser.add_argument(
        "--reschedule", action="store_true", help="with --on: what a machine ran that was lost runs again on another"
    )
    add_source_options(parser)
    add_loader_option(parser)
    add_attach_option(parser)
    parser.add_argument("--json", action="store_true", help="print what run.json holds, and the progress on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do the main job."""
    if not args.kernels and (args.vm_cpus or args.vm_silence):
        raise BadOption("--kernel-cpus and --kernel-silence are for --kernel")
    if args.on or args.reschedule:
        from lab.cli.machines_job import do_on_machines

        return do_on_machines(args)
    args.rounds = ROUNDS if args.rounds is None else args.rounds
    if args.kernels:
        from lab.cli.kernels_job import do_on_kernels

        return do_on_kernels(args)
    from lab.cli.job import do

    return do(args)


def _workers(text: str) -> str:
    return text if text == "auto" else str(count(text))
