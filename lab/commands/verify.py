"""`reloadlab verify`: let the running kernel's verifier judge every program of an object or of a C source."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from datapath.compile import compile_source, probe_compiler
from datapath.elf import read_object
from datapath.verify import ProgramReport, verify_object
from lab.commands.datapath import define
from lab.commands.targets import make_console, plural
from lab.doctor import require
from lab.scratch import scratch

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "verify",
        description="Load every program, with unpinned maps of its own, and print what the verifier counted. "
        "A C file is compiled first. Nothing is attached, nothing is left. Exit code 1 if a program is refused.",
    )
    parser.add_argument(
        "source", type=Path, metavar="OBJECT_OR_C_FILE", help="an object file, or a source ending in .c"
    )
    parser.add_argument(
        "-D", dest="defines", type=define, action="append", default=[], metavar="NAME[=VALUE]", help="for a C file"
    )
    parser.add_argument("--clang", metavar="PATH", help="the compiler for a C file")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the whole log of every refused program to FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the whole logs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a report per program; 1 if the verifier refused one."""
    require("bpf")
    reports = _verify(args.source, args.defines, args.clang)
    refused = [r for r in reports if r.error is not None]
    if args.log is not None:
        args.log.write_text("".join(f"=== {r.name} (section {r.section})\n{r.error.log}\n" for r in refused if r.error))
    if args.json:
        print(json.dumps(_document(args.source, reports), indent=2))
    else:
        _print(make_console(), args.source, reports)
    return 1 if refused else 0


def _verify(source: Path, defines: Sequence[tuple[str, str]], clang: str | None) -> list[ProgramReport]:
    if source.suffix != ".c":
        return verify_object(read_object(source))
    with scratch() as directory:
        output = directory / f"{source.stem}.o"
        includes = (source.parent, source.parent / "include")
        compile_source(source, output, includes=includes, defines=defines, compiler=probe_compiler(clang))
        return verify_object(read_object(output))


def _document(source: Path, reports: Sequence[ProgramReport]) -> dict[str, Any]:
    return {
        "path": str(source),
        "ok": all(r.error is None for r in reports),
        "programs": [_report_document(r) for r in reports],
    }


def _report_document(report: ProgramReport) -> dict[str, Any]:
    error = report.error
    return {
        "name": report.name,
        "section": report.section,
        "instructions": report.instructions,
        "verified_instructions": report.verified_instructions,
        "time_us": report.time_us,
        "stack": report.stack,
        "jited_size": report.jited_size,
        "accepted": error is None,
        "errno": None if error is None else error.errno,
        "summary": None if error is None else error.summary,
        "log": None if error is None else error.log,
    }


def _print(console: Console, source: Path, reports: Sequence[ProgramReport]) -> None:
    refused = [r for r in reports if r.error is not None]
    total = sum(r.instructions for r in reports)
    verdict = f"{len(refused)} refused" if refused else "all accepted"
    table = Table(title=f"{escape(source.name)}: {plural(len(reports), 'program')}, {total:,} instructions, {verdict}")
    table.title_justify = "left"
    table.add_column("program", no_wrap=True)
    table.add_column("section", no_wrap=True)
    for name in ("instructions", "verified", "time µs", "stack B", "jited B"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for r in reports:
        numbers = (r.instructions, r.verified_instructions, r.time_us, r.stack, r.jited_size)
        cells = ["-" if n is None else f"{n:,}" for n in numbers]
        verdict = "accepted" if r.error is None else f"refused: {r.error.summary}"
        table.add_row(escape(r.name), escape(r.section), *cells, escape(verdict))
    console.print(table)
    if refused:
        console.print("--log FILE writes the whole verifier log of what was refused", highlight=False)
