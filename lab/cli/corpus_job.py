"""The job of `reloadlab corpus`: the faults that were asked for, tried in one session of pytest."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from lab.cli.commands.corpus import PATIENCE
from lab.cli.corpus_view import Report, line, listed, print_counts, print_list, print_verdicts
from lab.cli.expressions import matches
from lab.cli.pace import find_pace
from lab.cli.suites import pytest_arguments
from lab.cli.targets import BadOption, make_console, print_json
from lab.corpus.course import NEEDED
from lab.corpus.fault import Fault
from lab.corpus.faults import all_faults
from lab.corpus.runner import Runner
from lab.corpus.sample import sample
from lab.corpus.verdict import Trial, Verdict
from lab.node import registry
from lab.system.pace import slowness
from lab.system.scratch import scratch
from lab.system.words import plural


def do(args: argparse.Namespace) -> int:
    """Try the faults with the options of the command, and return its exit code."""
    console, started = make_console(stderr=args.json), time.monotonic()
    faults = chosen(args)
    if args.list:
        if args.json:
            print_json([listed(fault) for fault in faults])
        else:
            print_list(console, faults)
        return 0
    report = Report()
    try:
        _try(console, args, faults, report)
    except BaseException as error:
        # What was found until then is told all the same, above all when Ctrl-C ends it.
        if report.verdicts or isinstance(error, KeyboardInterrupt):
            _print(console, args, faults, report, time.monotonic() - started)
        raise
    report.complete = True
    _print(console, args, faults, report, time.monotonic() - started)
    return 0 if report.good else 1


def chosen(args: argparse.Namespace) -> list[Fault]:
    """Return the faults that the options select; BadOption if there are none."""
    faults = [fault for fault in all_faults() if args.select is None or matches(args.select, fault.name)]
    if args.sample is not None:
        faults = sample(faults, args.sample, seed=args.seed or 0)
    if not faults:
        raise BadOption(f"no fault matches {args.select}")
    return faults


def _print(console: Console, args: argparse.Namespace, faults: Sequence[Fault], report: Report, seconds: float) -> None:
    order = {fault.name: number for number, fault in enumerate(faults)}
    report.verdicts.sort(key=lambda each: order[each.fault])
    console.print()
    print_verdicts(console, report.verdicts)
    console.print()
    print_counts(console, report)
    done = plural(len(faults), "fault") if report.complete else f"{len(report.verdicts)} of {len(faults)} faults"
    console.print(f"\n{done} in {seconds:.0f} s")
    if args.json:
        print(json.dumps(report.to_json(seconds), indent=2))


def _try(console: Console, args: argparse.Namespace, faults: Sequence[Fault], report: Report) -> None:
    """Try the faults; `report` has what came of those that are done."""
    tried = [fault for fault in faults if args.equivalent or not fault.equivalent]

    def note(fault: Fault, trial: Trial) -> None:
        report.verdicts.append(Verdict.of(fault, trial))
        console.print(f"  {escape(line(report.verdicts[-1]))}", highlight=False, soft_wrap=True)

    find_pace(console)
    registry.sweep()
    with scratch() as directory:
        runner = Runner(
            tried,
            directory,
            workers=args.workers,
            patience=args.patience or PATIENCE * slowness(),
            needed=1 if args.once else NEEDED,
            on_trial=note,
            on_control=report.control.append,
        )
        try:
            runner.run(pytest_arguments(args.paths))
        finally:
            registry.sweep()
    report.verdicts += [Verdict.of(fault, None) for fault in faults if fault not in tried]
