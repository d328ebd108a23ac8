"""`reloadlab compare`: what became worse between results of `reloadlab bench --out`, or between runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.compare_options import NOT_COMPARABLE, add_threshold
from lab.cli.targets import print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "compare",
        description="Compare results of `reloadlab bench ... --out`, or files run.json of `reloadlab run`: the first "
        "with each of the others, or the sides of one of `bench ab`. Exit code: 0 nothing is worse, 1 something is "
        "worse by the threshold or more, and significantly so, 3 they cannot be compared.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="OLD NEW [MORE...], or one of `bench ab`")
    add_threshold(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print Markdown, as for the summary of a job")
    parser.set_defaults(run=run, failure=NOT_COMPARABLE)


def run(args: argparse.Namespace) -> int:
    """Compare the files and print what was found."""
    from lab.cli.compare_view import exit_code, markdown, show, tell_unsaid, to_json
    from lab.results.compare import compare
    from lab.results.files import read_comparable

    results, left_out = read_comparable(args.results)
    if left_out:
        print(f"reloadlab: not compared: {left_out}", file=sys.stderr)
    comparisons = compare(results, args.threshold)
    if args.json:
        print_json(to_json(comparisons))
    elif args.markdown:
        print(markdown(comparisons, left_out), end="")
    else:
        show(comparisons)
    tell_unsaid(comparisons)
    return exit_code(comparisons)
