"""`reloadlab run`: the main job. Doctor, all scenarios, the time of parallel reloads, a report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

import lab
from datapath.errors import ReloadlabError
from lab.agent.options import check_library
from lab.bench.parallel import PODS, ROUNDS, ParallelReport, measure_parallel
from lab.cli.datapath import add_source_options
from lab.cli.report import print_parallel, print_scenarios, short_name, write_json
from lab.cli.targets import BadOption, count, make_console, plural
from lab.doctor import doctor
from lab.node import registry
from lab.system.scratch import scratch

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console

POLL = 0.2
"""Seconds between two looks at the records of scenarios that have ended."""

OUR_SUITES = Path(lab.__file__).parents[1] / "scenarios"
"""A path: nothing here imports what stands on top of it."""

NO_TESTS = 5
"""pytest's exit code when a selection matches nothing."""


class ScenariosBroken(ReloadlabError):
    """pytest ended otherwise than with a verdict on every scenario."""


def add_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "run",
        description="Check the machine, run every scenario with traffic, measure parallel reloads, write a report. "
        "Exit code 1 if anything failed.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="suites to run instead of ours")
    parser.add_argument("-k", dest="select", metavar="EXPRESSION", help="only scenarios that match, as in pytest")
    parser.add_argument(
        "-n", dest="workers", type=_workers, default="auto", metavar="N", help="scenarios at a time (all CPUs)"
    )
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
    started = time.monotonic()
    console = make_console()
    if not _examine(console):
        return 1
    # Told now, not in four minutes, if it cannot be written to.
    args.out.mkdir(parents=True, exist_ok=True)
    registry.sweep()
    records = _scenarios(console, args)
    report: ParallelReport | None = None
    if args.rounds > 0:
        console.print("\n[bold]parallel reloads[/]")
        report = measure_parallel(
            pods=args.pods,
            rounds=args.rounds,
            library=None if args.library is None else args.library.resolve(),
            defines=args.defines,
            on_round=lambda n, w, r: console.print(f"  round {n + 1}, {plural(w, 'worker')}: {r:.0f} reloads/s"),
        )
    console.print()
    print_scenarios(console, records)
    if report is not None:
        console.print()
        print_parallel(console, report)
    path = args.out / "run.json"
    write_json(path, records, report, time.monotonic() - started)
    _give_to_user(args.out)
    failed = [r for r in records if r["outcome"] not in ("passed", "skipped")]
    good = not failed and (report is None or report.passed)
    bad = [plural(len(failed), "scenario") + " failed"] if failed else []
    bad += ["parallel reloads failed"] if report is not None and not report.passed else []
    verdict = "[bold green]all passed[/]" if good else f"[bold red]{', '.join(bad)}[/]"
    console.print(
        f"\n{plural(len(records), 'scenario')} in {time.monotonic() - started:.0f} s, {verdict}; all of it in {path}"
    )
    return 0 if good else 1


def _workers(text: str) -> str:
    return text if text == "auto" else str(count(text))


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


def _scenarios(console: Console, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the suites under pytest and return a record per scenario, in order of name."""
    paths = [str(path) for path in args.paths or [OUR_SUITES]]
    console.print("\n[bold]scenarios[/]")
    with scratch() as directory:
        # Without -P and its variable, modules of the current directory would take the place of ours, or of Python's.
        argv = [sys.executable, "-P", "-m", "pytest", "-p", "reloadlab.short_names"]
        argv += ["-q", "-n", args.workers, "-p", "no:cacheprovider"]
        argv += ["--reloadlab-record", str(directory), *(["-k", args.select] if args.select else [])]
        argv += [] if args.library is None else ["--reloadlab-library", str(args.library)]
        argv += [word for name, value in args.defines for word in ("--reloadlab-define", f"{name}={value}")]
        argv += [] if args.paths else ["-c", str(OUR_SUITES / "suite.ini"), "--rootdir", str(OUR_SUITES.parent)]
        argv += paths
        output = directory / "pytest.log"
        with _running(argv, output) as process:
            seen: set[Path] = set()
            while process.poll() is None:
                _progress(console, directory, seen)
                try:
                    process.wait(POLL)
                except subprocess.TimeoutExpired:
                    continue
        _progress(console, directory, seen)
        records = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
        if process.returncode not in (0, 1) or not records:
            if process.returncode == NO_TESTS:
                raise ScenariosBroken(f"no scenario matches {args.select or ' '.join(paths)}")
            raise ScenariosBroken(f"pytest ended with exit code {process.returncode}:\n{output.read_text().strip()}")
    return sorted(records, key=lambda record: record["name"])


@contextmanager
def _running(argv: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run pytest; on Ctrl-C let it take its nodes down before going on."""
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    with (
        output.open("wb") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, env=env, start_new_session=True) as process,
    ):
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            registry.sweep()
            raise


def _progress(console: Console, directory: Path, seen: set[Path]) -> None:
    for path in sorted(directory.glob("*.json")):
        if path in seen:
            continue
        seen.add(path)
        record = json.loads(path.read_text())
        mark = {"passed": "[green]ok[/]  ", "skipped": "skip"}.get(record["outcome"], "[bold red]FAIL[/]")
        console.print(f"  {mark} {escape(short_name(record['name']))} ({record['seconds']:.1f} s)")


def _give_to_user(directory: Path) -> None:
    """Under sudo, hand the report to the user who called: it lies in his checkout."""
    uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if os.geteuid() == 0 and uid is not None and gid is not None:
        for path in (directory, *directory.iterdir()):
            os.chown(path, int(uid), int(gid))
