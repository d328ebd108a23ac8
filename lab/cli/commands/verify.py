"""`reloadlab verify`: let the running kernel's verifier judge every program of an object or of a C source."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapath.base.statefile import DamagedFile, read_json
from lab.cli.datapath import define
from lab.cli.tables import add_row, make_table, print_table
from lab.cli.targets import BadOption, count, file_path, print_json
from lab.doctor.doctor import require
from lab.system.output import OutputDirectory
from lab.system.words import plural

NUMBERS = {
    "instructions": "instructions",
    "verified_instructions": "verified",
    "time_us": "time µs",
    "stack": "stack B",
    "jited_size": "jited B",
    "total_states": "states",
    "peak_states": "peak",
}
"""What is counted, as JSON and the fields of ProgramReport call it, and as the table does."""

LATER = frozenset({"total_states", "peak_states"})
"""What earlier versions did not print."""

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from datapath.load.verify import ObjectReport, ProgramReport


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "verify",
        description="Load every program, with unpinned maps of its own, and print what the verifier counted. "
        "A C file is compiled first. Nothing is attached, nothing is left. Programs that are not supported are named "
        "with the reason and left out. Exit code 1 if a program is refused, or if none could be judged.",
    )
    parser.add_argument(
        "source", type=Path, metavar="OBJECT_OR_C_FILE", help="an object file, or a source ending in .c"
    )
    parser.add_argument(
        "-D", dest="defines", type=define, action="append", default=[], metavar="NAME[=VALUE]", help="for a C file"
    )
    parser.add_argument("--clang", metavar="PATH", help="the compiler for a C file")
    parser.add_argument("--log", type=file_path, metavar="FILE", help="write the whole log of every refused program")
    parser.add_argument("--loads", type=count, default=3, metavar="N", help="take the best time of so many loads (3)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="say what changed since this output of --json")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the whole logs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a report per program; 1 if the verifier refused one, or was asked about none."""
    if args.compare is not None and args.json:
        raise BadOption("--compare is for the table: two outputs of --json have all that it compares")
    if args.source.suffix != ".c" and (args.defines or args.clang is not None):
        raise BadOption(f"-D and --clang are for a C file, and {args.source} is none")
    before = _read(args.compare) if args.compare is not None else {}
    require("bpf")
    report = _verify(args.source, args.defines, args.clang, args.loads)
    if args.log is not None:
        logs = [f"=== {r.name} (section {r.section})\n{r.error.log}\n" for r in report.programs if r.error is not None]
        with OutputDirectory(args.log.parent) as output:
            output.write(args.log.name, "".join(logs))
    if args.json:
        print_json(_document(args.source, report))
    else:
        _print(args.source, report, before)
        if args.compare is not None:
            _tell_kernel(args.compare)
    return 0 if report.ok else 1


def _read(path: Path) -> dict[str, dict[str, int | None]]:
    """Return the numbers of each program of an earlier output."""
    try:
        document: Any = read_json(path)
        return {
            program["name"]: {name: program.get(name) if name in LATER else program[name] for name in NUMBERS}
            for program in document["programs"]
        }
    except (OSError, DamagedFile, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no output of reloadlab verify --json"
        raise BadOption(f"--compare {path}: {reason}") from error


def _tell_kernel(path: Path) -> None:
    """Say if an earlier output is of another kernel; nothing if it does not say of which."""
    document: Any = read_json(path)
    kernel = document.get("kernel")
    if kernel not in (None, os.uname().release):
        print(f"other kernel: {path} is of {kernel}, this is {os.uname().release}: their verifiers count differently")


def _verify(source: Path, defines: Sequence[tuple[str, str]], clang: str | None, loads: int) -> ObjectReport:
    from datapath.build.compile import compile_source, probe_compiler
    from datapath.load.verify import verify_object
    from datapath.object.reader import read_object
    from lab.system.scratch import scratch

    if source.suffix != ".c":
        return verify_object(read_object(source), loads=loads)
    # A source that is missing is named as it was given, and not as the compiler's output.
    source.stat()
    with scratch() as directory:
        output = directory / f"{source.stem}.o"
        includes = (source.parent, source.parent / "include")
        compile_source(source, output, includes=includes, defines=defines, compiler=probe_compiler(clang))
        return verify_object(read_object(output), loads=loads)


def _document(source: Path, report: ObjectReport) -> dict[str, Any]:
    return {
        "path": str(source),
        "kernel": os.uname().release,
        "ok": report.ok,
        "programs": [_report_document(r) for r in report.programs],
        "notes": list(report.notes),
    }


def _report_document(report: ProgramReport) -> dict[str, Any]:
    from datapath.load.verify import Verdict

    error = report.error
    return {
        "name": report.name,
        "section": report.section,
        **_numbers(report),
        "reached_from": list(report.reached_from),
        "verdict": report.verdict.value,
        "accepted": report.verdict is Verdict.ACCEPTED,
        "reason": report.reason or None,
        "errno": None if error is None else error.errno,
        "summary": None if error is None else error.summary,
        "source": None if error is None else error.source,
        "log": None if error is None else error.log,
    }


def _numbers(report: ProgramReport) -> dict[str, int | None]:
    return {name: getattr(report, name) for name in NUMBERS}


Before = Mapping[str, Mapping[str, int | None]]
"""The numbers of each program, by its name."""


def _print(source: Path, report: ObjectReport, before: Before) -> None:
    from datapath.load.verify import Verdict

    reports = report.programs
    total = sum(r.instructions for r in reports)
    verdict = _overall(report)
    title = f"{source.name}: {plural(len(reports), 'program')}, {total:,} instructions, {verdict}"
    columns = ("program", "section", *NUMBERS.values(), "reached from", "verdict")
    table = make_table(*columns, figures=NUMBERS.values(), title=title)
    now = {r.name: _numbers(r) for r in reports}
    for r in reports:
        cells = _cells(now[r.name], before.get(r.name, {}))
        reason = r.error.summary if r.error is not None else r.reason
        verdict = f"{r.verdict}: {reason}" if reason else str(r.verdict)
        verdict = f"new, {verdict}" if before and r.name not in before else verdict
        add_row(table, r.name, r.section, *cells, ", ".join(r.reached_from) or "nothing", verdict)
    table.add_row()
    add_row(table, "all", "", *_cells(_sum(now), _sum(before) if before else {}), "", "")
    print_table(table)
    if gone := [name for name in before if name not in now]:
        print(f"gone: {', '.join(gone)}")
    for note in report.notes:
        print(f"note: {note}")
    if report.with_verdict(Verdict.REFUSED):
        print("--log FILE writes the whole verifier log of what was refused")


def _overall(report: ObjectReport) -> str:
    """Return how many programs have which verdict, in words."""
    from datapath.load.verify import Verdict

    if len(report.with_verdict(Verdict.ACCEPTED)) == len(report.programs):
        return "all accepted" if report.programs else "nothing to judge"
    counts = [(len(report.with_verdict(verdict)), verdict) for verdict in Verdict]
    return ", ".join(f"{count} {verdict}" for count, verdict in counts if count)


def _sum(programs: Before) -> dict[str, int | None]:
    """Return what all programs have together; of the stack and the states at a time, the largest counts."""
    columns = {name: [numbers[name] or 0 for numbers in programs.values()] for name in NUMBERS}
    largest = ("stack", "peak_states")
    return {name: max(column, default=0) if name in largest else sum(column) for name, column in columns.items()}


def _cells(now: Mapping[str, int | None], before: Mapping[str, int | None]) -> Iterator[str]:
    """Yield a number for each column, and what it is more or less than before."""
    for name, value in now.items():
        was = before.get(name)
        if value is None:
            yield "-"
        elif was is None or was == value:
            yield f"{value:,}"
        else:
            yield f"{value:,} ({value - was:+,})"
