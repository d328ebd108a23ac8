"""The job of `reloadlab corpus`: the faults that were asked for, tried in one session of pytest, and a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.cli.expressions import matches
from lab.cli.suites import our_suites
from lab.cli.targets import BadOption, make_console
from lab.corpus.fault import Fault
from lab.corpus.faults import all_faults
from lab.corpus.runner import CorpusError, Runner, verdict
from lab.corpus.verdict import Outcome, Trial, Verdict
from lab.node import registry
from lab.system.scratch import scratch


def do(args: argparse.Namespace) -> int:
    """Try the faults with the options of the command, and return its exit code."""
    console = make_console(stderr=args.json)
    faults = [fault for fault in all_faults() if args.select is None or matches(args.select, fault.name)]
    if not faults:
        raise BadOption(f"no fault matches {args.select}")
    if args.list:
        _print_list(console, faults)
        return 0
    verdicts = _tried(console, args, faults)
    print_verdicts(console, verdicts)
    if args.json:
        print(json.dumps(to_json(verdicts), indent=2))
    return 0 if all(each.good for each in verdicts) else 1


def _tried(console: Console, args: argparse.Namespace, faults: Sequence[Fault]) -> list[Verdict]:
    verdicts = [
        Verdict(fault.name, fault.kind, Outcome.EQUIVALENT, fault.what, fault.cites, fault.equivalent)
        for fault in faults
        if fault.equivalent
    ]

    def note(fault: Fault | None, trial: Trial) -> None:
        if fault is not None:
            verdicts.append(verdict(fault, trial))
            console.print(f"  {escape(_line(verdicts[-1]))}", highlight=False)

    registry.sweep()
    with scratch() as directory:
        runner = Runner(
            [fault for fault in faults if not fault.equivalent],
            directory,
            workers=args.workers,
            patience=args.patience,
            on_verdict=note,
        )
        try:
            _collect(runner, args.paths)
        finally:
            registry.sweep()
    return verdicts


def _collect(runner: Runner, paths: Sequence[Path]) -> None:
    """Have pytest collect the scenarios and the runner try its faults on them."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        # They would change the call.
        del os.environ[name]
    argv = ["-p", "reloadlab.short_names", "-s"]
    argv += [word for name in ("xdist", "cacheprovider") for word in ("-p", f"no:{name}")]
    ours = our_suites()
    argv += map(str, paths) if paths else ["-c", str(ours / "suite.ini"), "--rootdir", str(ours.parent), str(ours)]
    code = pytest.main(argv, plugins=[runner])
    if runner.error is not None:
        raise runner.error
    if runner.broken:
        raise CorpusError("\n".join(runner.broken))
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise CorpusError(f"pytest ended with exit code {int(code)}")


def _line(each: Verdict) -> str:
    catch = each.trial.catch
    by = "" if catch is None else f" by {catch.scenario}: {catch}"
    return f"{each.outcome}: {each.fault}{by} ({each.trial.seconds:.1f} s)"


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print one line per fault."""
    table = Table("fault", "kind", "outcome", "scenario", "by", "sent", box=None, pad_edge=False)
    for each in verdicts:
        catch = each.trial.catch
        style = "green" if each.outcome is Outcome.CAUGHT else "default" if each.good else "bold red"
        table.add_row(
            escape(each.fault),
            each.kind,
            f"[{style}]{each.outcome if each.good else each.outcome.upper()}[/]",
            "" if catch is None else escape(catch.scenario),
            "" if catch is None else escape(str(catch)),
            str(each.trial.sent),
        )
    console.print(table)


def to_json(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """Return the document that --json prints."""
    return {
        "faults": [each.to_json() for each in verdicts],
        **{
            outcome.replace(" ", "_"): [each.fault for each in verdicts if each.outcome is outcome]
            for outcome in Outcome
        },
    }


def _print_list(console: Console, faults: Sequence[Fault]) -> None:
    for fault in faults:
        console.print(f"{fault.name} ({fault.kind}): {fault.what}", markup=False, highlight=False)
    print(f"{len(faults)} faults", file=sys.stderr)
