"""`reloadlab history`: results of `bench --out` over commits, in plain files."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.compare_options import NOT_COMPARABLE, THRESHOLD, add_side, add_threshold, chosen_side
from lab.cli.targets import BadOption, count, file_path, print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and what can be done with a history."""
    parser = subparsers.add_parser(
        "history",
        description="Keep results of `reloadlab bench ... --out` over commits, look at them, and find the commit at "
        "which something became worse. Results of other machines, options or benchmarks are series of their own.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="WHAT", help="what is done")
    _add_add(actions)
    _add_show(actions)
    _add_check(actions)


def _add_add(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "add",
        help="put a result into the directory",
        description="Put a result into DIR, which is made if it is missing, in a file whose name has the time, the "
        "commit, and a number for the machine and the options. Nothing is overwritten.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the history")
    parser.add_argument("result", type=Path, metavar="FILE", help="a result of `bench ... --out`, or a run.json")
    add_side(parser, "that is kept")
    parser.add_argument("--commit", metavar="NAME", help="the commit, if the result does not name it")
    parser.add_argument(
        "--time", type=_time, metavar="TIME", help="its place in the series, such as a commit's date (when measured)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_add)


def _add_show(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "show",
        help="print every metric over the commits, or draw them",
        description="Print every metric over the commits: first and last value, change and course.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the history")
    parser.add_argument("-o", dest="plot", type=file_path, metavar="FILE.svg", help="draw it, with the steps of check")
    add_threshold(parser, default=None)
    parser.add_argument("--json", action="store_true", help="print all values as JSON instead")
    parser.set_defaults(run=run_show)


def _add_check(actions: _SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "check",
        help="find the steps, and the commits between which they are",
        description="Find steps in every metric, and the commits between which they are. Exit code: 0 nothing became "
        "worse, 1 something did by the threshold or more, 3 there is too little to say anything.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the history")
    add_threshold(parser)
    parser.add_argument("--last", type=count, metavar="N", help="only steps at the last N commits of DIR count (all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run_check, failure=NOT_COMPARABLE)


def run_add(args: argparse.Namespace) -> int:
    """Put a result into a history, and print where it went."""
    from lab.results.files import read_measured
    from lab.results.history import add, one_side

    result = read_measured(args.result)
    side = chosen_side(result, args.side, args.result)
    added = add(args.directory, one_side(result, side, commit=args.commit), args.time)
    if args.json:
        file, differences = str(args.directory / added.name), list(added.differences)
        print_json({"file": file, "begins": added.begins, "differences": differences})
        return 0
    print(args.directory / added.name)
    if added.differences:
        print("begins a series of its own, as it differs from the last result: " + "; ".join(added.differences))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print the metrics over commits, and draw them."""
    from lab.cli.history_view import show, to_json
    from lab.report.history_plot import plot
    from lab.results.history import lineages
    from lab.results.trends import check
    from lab.system.output import OutputDirectory

    if args.threshold is not None and args.plot is None:
        raise BadOption("--threshold is for the steps that -o draws: without it there are none")
    found = lineages(args.directory)
    if args.plot is not None:
        picture = plot([check(lineage, args.threshold or THRESHOLD) for lineage in found])
        with OutputDirectory(args.plot.parent) as output:
            output.write(args.plot.name, picture)
    if args.json:
        print_json(to_json(found))
    else:
        show(found)
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Find the steps and print them."""
    from lab.cli.history_view import exit_code, nothing_said, show_steps, steps_to_json
    from lab.results.history import lineages, newest
    from lab.results.trends import check

    found = lineages(args.directory)
    recent = None if args.last is None else newest(found, args.last)
    checked = [check(lineage, args.threshold, recent) for lineage in found]
    if args.json:
        print_json(steps_to_json(checked))
    else:
        show_steps(checked)
    if reason := nothing_said(checked):
        print(f"reloadlab: {args.directory}: nothing can be said: {reason}", file=sys.stderr)
    return exit_code(checked)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T12:00:00+00:00") from None
