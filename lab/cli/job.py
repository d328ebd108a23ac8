"""The main job of `reloadlab run`: doctor, suites under pytest, parallel reloads, and run.json while it goes on."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from lab.agent.options import check_library
from lab.cli.ci import CiFiles
from lab.cli.datapath import check_attach
from lab.cli.pace import find_pace
from lab.cli.progress import ScenarioProgress
from lab.cli.report import RunFile, print_parallel, print_reasons, print_scenarios
from lab.cli.suites import Call, Suites
from lab.cli.targets import BadOption, make_console, warned
from lab.doctor import doctor
from lab.loaders.command import given_loader
from lab.node import registry
from lab.report.documents import to_document
from lab.report.trace import trace
from lab.results.run import RunFacts
from lab.results.subject import subject_of
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, SKIPPED, Record
from lab.system.output import OutputDirectory
from lab.system.scratch import scratch
from lab.system.words import plural

if TYPE_CHECKING:
    from rich.console import Console

    from lab.bench.parallel import ParallelReport

REPORT_HTML = "report.html"
TRACE_JSON = "trace.json"
_STDERR = 2


class RequirementsMissing(ReloadlabError):
    """A machine that lacks what the lab needs."""

    def __init__(self, missing: Sequence[doctor.Finding]) -> None:
        names = ", ".join(finding.name for finding in missing)
        super().__init__(f"the machine lacks {names}: see reloadlab doctor")
        self.missing = tuple(missing)


def do(args: argparse.Namespace) -> int:
    """Do the main job with the options of the command, and return its exit code."""
    with CiFiles(args.junitxml, args.summary) as files:
        return _do(args, files)


def _do(args: argparse.Namespace, files: CiFiles) -> int:
    console = make_console(stderr=args.json)
    check(args)
    # Before a directory is made that root could not use.
    doctor.require("root")
    with OutputDirectory(args.out) as output, paged(output, RunFile(output, about(args))) as file:
        files.run = file
        _examine(console)
        check_attach(args.attach)
        find_pace(console)
        registry.sweep()
        records = run_scenarios(console, call_of(args, file), file, stdout=_STDERR if args.json else None)
        # Where scenarios are only listed, nothing is measured either.
        if args.rounds > 0 and any(record.outcome != NOT_RUN for record in records):
            file.parallel = _measure(console, args)
        file.write(records, complete=True)
        write_trace(args, output, file)
    return conclude(console, args, file, records)


def write_trace(args: argparse.Namespace, output: OutputDirectory, file: RunFile) -> None:
    """Write the trace of what run.json holds, if it is asked for."""
    if args.trace:
        output.write(TRACE_JSON, json.dumps(trace(json.loads(file.text))))


def conclude(console: Console, args: argparse.Namespace, file: RunFile, records: Sequence[Record]) -> int:
    """Print the verdict and where the result is, or the result itself, and return the exit code."""
    good, verdict = _verdict(records, file.parallel)
    console.print(f"\n{plural(len(records), 'scenario')} in {file.seconds:.0f} s, {verdict}; all of it in {file.path}")
    console.print(f"to look at: {file.path.with_name(REPORT_HTML)}", markup=False, highlight=False, soft_wrap=True)
    if args.json:
        print(file.text, end="")
    return 0 if good else 1


def check(args: argparse.Namespace) -> None:
    """Refuse what the run could not begin with."""
    for path in args.paths:
        if not Path(str(path).partition("::")[0]).exists():
            raise BadOption(f"{path}: no such file or directory")
    check_library(args.library)
    given_loader(args.loader)


def about(args: argparse.Namespace) -> RunFacts:
    """Return what the run is of, apart from what its scenarios choose for themselves."""
    library = None if args.library is None else args.library.resolve()
    subject = subject_of(library=library, defines=args.defines, loader=args.loader, attach=args.attach)
    return RunFacts.now(subject)


@contextmanager
def paged(output: OutputDirectory, file: RunFile) -> Iterator[RunFile]:
    """Write the page of what run.json holds in the end, whatever ends the run.

    No page or trace of the run before stays beside run.json, also if this one is killed. run.json is written at once:
    what cannot be written fails now rather than after all scenarios.
    """
    output.remove(REPORT_HTML)
    output.remove(TRACE_JSON)
    file.write([])
    try:
        with file:
            yield file
    except BaseException:
        with warned():
            _write_page(output, file)
            print(f"reloadlab: what there is of the run: {file.path.with_name(REPORT_HTML)}", file=sys.stderr)
        raise
    _write_page(output, file)


def _write_page(output: OutputDirectory, file: RunFile) -> None:
    # numpy and scipy are long in coming, and nothing before needs them.
    from lab.report.page import PageMaker

    output.write(REPORT_HTML, PageMaker([to_document(file.path, json.loads(file.text))]).make())


def _verdict(records: Sequence[Record], report: ParallelReport | None) -> tuple[bool, str]:
    """Return whether all is well, and the same in words. A run in which nothing was checked is not well."""
    counts = Counter(record.outcome for record in records)
    failed, errors, left_out, skipped = counts[FAILED], counts[ERROR], counts[NOT_RUN], counts[SKIPPED]
    passed = counts[PASSED]
    bad = [plural(failed, "scenario") + " failed"] if failed else []
    # A scenario without a verdict is one.
    bad += [plural(errors, "error")] if errors else []
    bad += [f"{left_out} not run"] if left_out else []
    bad += ["parallel reloads failed"] if report is not None and not report.passed else []
    if skipped and not passed and not bad:
        bad = ["nothing was checked: all skipped"]
    if bad:
        return False, f"[bold red]{', '.join(bad)}[/]"
    return True, f"[bold green]{f'{passed} passed, {skipped} skipped' if skipped else 'all passed'}[/]"


def _examine(console: Console) -> None:
    """Print what the machine lacks; RequirementsMissing if the lab cannot do without it."""
    console.print("[bold]doctor[/]")
    findings = list(doctor.examine())
    for finding in findings:
        if finding.state is not doctor.State.OK:
            console.print(f"  {finding}", markup=False)
    missing = [f for f in findings if f.state is doctor.State.MISSING]
    console.print(f"  {sum(f.state is doctor.State.OK for f in findings)} of {len(findings)} requirements are there")
    if missing:
        raise RequirementsMissing(missing)


def call_of(args: argparse.Namespace, file: RunFile) -> Call:
    """Return what pytest is called with."""
    return Call(
        paths=args.paths,
        select=args.select,
        workers=args.workers,
        library=args.library,
        loader=args.loader,
        attach=args.attach,
        defines=args.defines,
        handed_on=args.handed_on,
        failed=file.before,
        keep=args.keep,
        pcap=args.pcap,
    )


def run_scenarios(
    console: Console,
    call: Call,
    file: RunFile,
    *,
    stdout: int | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> list[Record]:
    """Run the suites under pytest, keep run.json up to date, print and return a record per scenario.

    `stdout` is a descriptor for what pytest prints: with --json, ours holds one document and nothing else. `meanwhile`
    is called several times a second.
    """
    console.print("\n[bold]scenarios[/]")
    with scratch() as directory, _swept() if call.machines is None else nullcontext():
        suites = Suites(call, directory, stdout=stdout)
        # What is handed on to pytest may well concern what it prints: then that is what is shown.
        shown = None if call.handed_on else ScenarioProgress(console)

        def on_look(changed: Sequence[Record]) -> None:
            meanwhile()
            records = suites.records
            if shown is not None:
                shown.look(changed, records)
            file.update(records, changed=bool(changed))

        try:
            if shown is None:
                suites.run(on_look)
            else:
                with shown:
                    suites.run(on_look, shown.stop)
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
    """Remove at the end the labs of workers that died; a failure is printed and changes nothing else."""
    try:
        yield
    finally:
        try:
            registry.sweep()
        except ReloadlabError as error:
            print(f"reloadlab: warning: leftovers remain: {error}", file=sys.stderr)


def _measure(console: Console, args: argparse.Namespace) -> ParallelReport:
    # With it comes all that reloads, which only pytest needs otherwise.
    from lab.bench.parallel import measure_parallel

    console.print("\n[bold]parallel reloads[/]")
    report = measure_parallel(
        pods=args.pods,
        rounds=args.rounds,
        library=None if args.library is None else args.library.resolve(),
        defines=args.defines,
        loader=given_loader(args.loader),
        attach=args.attach or Attachment.TC,
        on_round=lambda n, w, r: console.print(f"  round {n + 1}, {plural(w, 'worker')}: {r:.0f} reloads/s"),
    )
    console.print()
    print_parallel(console, report)
    return report
