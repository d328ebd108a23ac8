"""`reloadlab report`: one HTML file that shows what a run, benchmarks and trials found."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cli.compare_options import add_threshold
from lab.cli.targets import BadOption, file_path

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "report",
        description="Write one HTML file that shows what was found. It holds everything and loads nothing; a browser "
        "opens it without a network.",
        epilog="Exit code 0 if the page was written, whatever it shows.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a run.json, results of `bench --out`, what corpus, faults and prove print with --json, directories of "
        "`history`; in any number",
    )
    parser.add_argument(
        "-o", "--output", type=file_path, default=Path("report.html"), metavar="FILE", help="the page (report.html)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="OLD", help="a run.json or a result of `bench --out` to compare with"
    )
    parser.add_argument(
        "--trace", type=file_path, metavar="FILE", help="write the run as a trace too, which Perfetto opens"
    )
    add_threshold(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read the files, write the page, print its path."""
    from lab.report.baseline import baseline, can_be_compared
    from lab.report.documents import of_kind, read_document, read_documents
    from lab.report.page import PageMaker
    from lab.report.trace import trace
    from lab.system.output import OutputDirectory

    _check_outputs(args)
    documents = read_documents(args.files)
    old = None if args.compare is None else read_document(args.compare)
    if old is not None and not can_be_compared(old, documents):
        raise BadOption(
            f"--compare {old.name}: it takes an old run.json or result of `bench --out`, with a new one among the files"
        )
    compared = None if old is None else baseline(old, documents)
    runs = of_kind(documents, "run")
    if args.trace is not None and len(runs) != 1:
        raise BadOption(f"--trace is of one run: among the files are {len(runs)}")
    with OutputDirectory(args.output.parent) as output:
        output.write(args.output.name, PageMaker(documents, baseline=compared, threshold=args.threshold).make())
    print(args.output)
    if args.trace is not None:
        with OutputDirectory(args.trace.parent) as output:
            output.write(args.trace.name, json.dumps(trace(runs[0].content)))
        print(args.trace)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise BadOption where what is written would take the place of a file that is read, or of the page."""
    read = [path for path in (*args.files, args.compare) if path is not None and path.exists()]
    for option, written in (("-o", args.output), ("--trace", args.trace)):
        if written is not None and written.exists() and any(path.samefile(written) for path in read):
            raise BadOption(f"{option} {written}: it is one of the files to read")
    if args.trace is not None and args.trace.absolute() == args.output.absolute():
        raise BadOption(f"--trace {args.trace}: that is the page")
