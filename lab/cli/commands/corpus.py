"""`reloadlab corpus`: put known bugs into the lab, one at a time, and say which scenario notices each."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.expressions import expression
from lab.cli.targets import BadOption, count

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PATIENCE = 300
"""Seconds that one scenario may take before it counts as hung."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "corpus",
        description="Put each fault of the corpus into the lab and run the ordinary scenarios until one fails. "
        "Exit code 0 if every fault was caught, or is equivalent to none.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="suites instead of ours")
    parser.add_argument(
        "-k", dest="select", type=expression, metavar="EXPRESSION", help="only faults whose names match, as in pytest"
    )
    parser.add_argument(
        "--sample", type=count, metavar="N", help="only N faults, spread evenly over the kinds and the plans"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="another sample of the same size (0)")
    parser.add_argument("--equivalent", action="store_true", help="try also the faults that are without effect")
    parser.add_argument("--list", action="store_true", help="list the faults, as JSON with --json, and try none")
    parser.add_argument("--workers", type=count, default=None, metavar="N", help="faults at a time (all CPUs)")
    parser.add_argument(
        "--patience",
        type=count,
        metavar="SECONDS",
        help=f"after which a scenario counts as hung ({PATIENCE})",
    )
    parser.add_argument("--once", action="store_true", help="one failure of a scenario counts; it is not run again")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON, and the progress on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Try the faults."""
    from lab.cli.corpus_job import do

    if args.seed is not None and args.sample is None:
        raise BadOption("--seed draws another sample: with --sample")
    for path in args.paths:
        if not Path(str(path).partition("::")[0]).exists():
            raise BadOption(f"{path}: no such file or directory")
    args.workers = args.workers or len(os.sched_getaffinity(0))
    return do(args)
