"""`reloadlab run`: the main job. Doctor, all scenarios, the time of parallel reloads, a report."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from lab.agent.options import check_library
from lab.bench.parallel import PODS, ROUNDS, ParallelReport, measure_parallel
from lab.cli.datapath import add_source_options
from lab.cli.output import OutputDirectory
from lab.cli.report import RunFile, print_parallel, print_reasons, print_scenarios, short_name
from lab.cli.suites import Call, Suites, WrongCall
from lab.cli.targets import BadOption, count, make_console, plural
from lab.doctor import doctor
from lab.node import registry
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED, Record
from lab.system.scratch import scratch

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console

WRONG_CALL = 2
"""Exit code: pytest does not understand what was handed on to it."""


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
        "-k", dest="select", type=_expression, metavar="EXPRESSION", help="only scenarios that match, as in pytest"
    )
    parser.add_argument("--workers", type=_workers, default="auto", metavar="N", help="scenarios at a time (all CPUs)")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where run.json goes (out)")
    parser.add_argument("--pods", type=count, default=PODS, metavar="N", help=f"pods of the measurement ({PODS})")
    parser.add_argument("--rounds", type=_rounds, default=ROUNDS, metavar="N", help=f"its rounds ({ROUNDS}; 0: none)")
    add_source_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do the main job."""
    for path in args.paths:
        if not Path(str(path).partition("::")[0]).exists():
            raise BadOption(f"{path}: no such file or directory")
    check_library(args.library)
    console = make_console()
    if not _examine(console):
        return 1
    with OutputDirectory(args.out) as output:
        file = RunFile(output)
        # Told now, not in four minutes, if it cannot be written.
        file.write([])
        registry.sweep()
        try:
            records = _scenarios(console, args, file)
        except WrongCall as error:
            print(f"reloadlab: {error}", file=sys.stderr)
            return WRONG_CALL
        if args.rounds > 0:
            file.parallel = _measure(console, args)
        file.write(records, complete=True)
    good, verdict = _verdict(records, file.parallel)
    console.print(f"\n{plural(len(records), 'scenario')} in {file.seconds:.0f} s, {verdict}; all of it in {file.path}")
    return 0 if good else 1


def _verdict(records: Sequence[Record], report: ParallelReport | None) -> tuple[bool, str]:
    """Return whether all is well, and the same in words. A run in which nothing was checked is not well."""
    counts = Counter(record.outcome for record in records)
    failed, left_out, skipped, passed = counts[FAILED] + counts[ERROR], counts[NOT_RUN], counts[SKIPPED], counts[PASSED]
    bad = [plural(failed, "scenario") + " failed"] if failed else []
    bad += [f"{left_out} not run"] if left_out else []
    bad += ["parallel reloads failed"] if report is not None and not report.passed else []
    if skipped and not passed and not bad:
        bad = ["nothing was checked: all skipped"]
    if bad:
        return False, f"[bold red]{', '.join(bad)}[/]"
    return True, f"[bold green]{f'{passed} passed, {skipped} skipped' if skipped else 'all passed'}[/]"


def _workers(text: str) -> str:
    return text if text == "auto" else str(count(text))


def _expression(text: str) -> str:
    """Refuse what pytest would: its workers, which find out, die of it with a traceback."""
    from _pytest.mark import expression

    # Before pytest 9 it has an error of its own.
    wrong: tuple[type[Exception], ...] = (SyntaxError, getattr(expression, "ParseError", SyntaxError))
    try:
        expression.Expression.compile(text)
    except wrong as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no expression: {error.args[0]}") from error
    return text


def _rounds(text: str) -> int:
    return 0 if text == "0" else count(text)


def _examine(console: Console) -> bool:
    console.print("[bold]doctor[/]")
    findings = list(doctor.examine())
    for finding in findings:
        if finding.state is not doctor.State.OK:
            console.print(f"  {finding}", markup=False)
    missing = [f for f in findings if f.state is doctor.State.MISSING]
    console.print(f"  {sum(f.state is doctor.State.OK for f in findings)} of {len(findings)} requirements are there")
    return not missing


def _scenarios(console: Console, args: argparse.Namespace, file: RunFile) -> list[Record]:
    """Run the suites under pytest, keep run.json up to date, print and return a record per scenario."""
    console.print("\n[bold]scenarios[/]")
    call = Call(
        paths=args.paths,
        select=args.select,
        workers=args.workers,
        library=args.library,
        defines=args.defines,
        handed_on=args.handed_on,
        failed=file.before,
    )
    told: set[str] = set()
    with scratch() as directory, _swept():
        suites = Suites(call, directory)

        def on_look(changed: Sequence[Record]) -> None:
            # What is handed on to pytest may well concern what it prints: then that is what is shown.
            if not args.handed_on:
                _print_progress(console, changed, told)
            file.update(suites.records, changed=bool(changed))

        try:
            suites.run(on_look)
        except KeyboardInterrupt:
            file.write(suites.records)
            print_reasons(console, suites.records)
            raise
        file.write(suites.records)
        if suites.records:
            console.print()
            print_scenarios(console, suites.records)
        suites.check()
        return suites.records


@contextmanager
def _swept() -> Iterator[None]:
    """Remove at the end the labs of workers that died."""
    try:
        yield
    finally:
        registry.sweep()


def _print_progress(console: Console, changed: Sequence[Record], told: set[str]) -> None:
    """Print a line for each scenario that has come to its end."""
    for record in changed:
        if record.outcome in (NOT_RUN, RUNNING) or record.name in told:
            continue
        told.add(record.name)
        mark = {PASSED: "[green]ok[/]  ", SKIPPED: "skip"}.get(record.outcome, "[bold red]FAIL[/]")
        console.print(f"  {mark} {escape(short_name(record.name))} ({record.seconds:.1f} s)")


def _measure(console: Console, args: argparse.Namespace) -> ParallelReport:
    console.print("\n[bold]parallel reloads[/]")
    report = measure_parallel(
        pods=args.pods,
        rounds=args.rounds,
        library=None if args.library is None else args.library.resolve(),
        defines=args.defines,
        on_round=lambda n, w, r: console.print(f"  round {n + 1}, {plural(w, 'worker')}: {r:.0f} reloads/s"),
    )
    console.print()
    print_parallel(console, report)
    return report
