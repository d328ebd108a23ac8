"""What `reloadlab run` prints and writes: scenarios, parallel reloads, and all of it as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.bench.parallel import ParallelReport, Percentiles, WorkerReport

FORMAT = 1
"""Version of run.json; see docs/run-json.md."""

_STEP_WIDTH, _CELL_WIDTH = 15, 20
"""Columns for a step's name, and for the percentiles and the kernel's share of one worker count."""


def print_scenarios(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """Print one line per scenario, and the whole story of those that failed."""
    table = Table("scenario", "outcome", "reloads", "sent", "lost", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for record in records:
        style = "green" if record["outcome"] == "passed" else "bold red"
        table.add_row(
            escape(short_name(record["name"])),
            f"[{style}]{record['outcome']}[/]",
            str(len(record["reloads"])),
            str(record["sent"]),
            str(record["lost"]),
        )
    console.print(table)
    for record in records:
        if record["outcome"] not in ("passed", "skipped"):
            console.print(f"\n[bold red]{escape(short_name(record['name']))}[/]")
            console.print(record["message"], markup=False, highlight=False)


def print_parallel(console: Console, report: ParallelReport) -> None:
    """Print the rates, then the percentiles of every step."""
    rates = Table("workers", "reloads/s", "p50 ms", "p95 ms", "p99 ms", "kernel", box=None, pad_edge=False)
    for column in rates.columns:
        column.justify = "right"
    for row in report.workers:
        rates.add_row(str(row.workers), f"{row.reloads_per_second:.0f}", *_cells(row.reload))
    console.print(rates)
    # As many worker counts side by side as there is room for: no cell is ever wrapped.
    fit = max((console.width - _STEP_WIDTH) // _CELL_WIDTH, 1)
    for first in range(0, len(report.workers), fit):
        console.print()
        console.print(_steps(report.workers[first : first + fit]))
    console.print(
        f"{report.pods} pods, {report.rounds} rounds; {report.sent} packets of other pods sent, {report.lost} lost",
        highlight=False,
    )
    if report.tracing is None:
        console.print("kernel, sys%: the part of the time that passed inside system calls", highlight=False)
    else:
        console.print(f"kernel share not measured: {report.tracing}", highlight=False)
    for line in (*report.failures, *report.problems):
        console.print(line, style="bold red", markup=False, highlight=False)


def _steps(rows: Sequence[WorkerReport]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("milliseconds\nof the step", no_wrap=True)
    for row in rows:
        title = f"{row.workers} worker{'s' if row.workers > 1 else ''}"
        table.add_column(f"{title}\np50/p95/p99", justify="right", no_wrap=True)
        table.add_column("\nsys%", justify="right", no_wrap=True)
    for step in dict.fromkeys(step for row in rows for step in row.steps):
        cells: list[str] = []
        for row in rows:
            times = row.steps.get(step)
            cells += ["", ""] if times is None else ["/".join(map(_short, _cuts(times))), _share(times)]
        table.add_row(step, *cells)
    return table


def write_json(
    path: Path, scenarios: Sequence[dict[str, Any]], parallel: ParallelReport | None, seconds: float
) -> None:
    """Write run.json; a file that was there is replaced in one step."""
    reloads = [{"scenario": record["name"], **reload} for record in scenarios for reload in record["reloads"]]
    document = {
        "format": FORMAT,
        "machine": {"kernel": os.uname().release, "cpus": len(os.sched_getaffinity(0))},
        "seconds": round(seconds, 3),
        "scenarios": [record | {"reloads": len(record["reloads"])} for record in scenarios],
        "reloads": reloads,
        "parallel": parallel.to_json() if parallel is not None else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    upcoming = path.with_name(path.name + ".new")
    upcoming.write_text(json.dumps(document, indent=1) + "\n")
    upcoming.rename(path)


def short_name(nodeid: str) -> str:
    """Return a test's name without directory, suffix and the words every test has: `rollback: second attach fails`."""
    path, _, name = nodeid.partition("::")
    suite = Path(path).stem.removeprefix("test_").replace("_", " ")
    return f"{suite}: {name.removeprefix('test_').replace('_', ' ')}"


def _cells(times: Percentiles | None) -> tuple[str, ...]:
    if times is None:
        return "-", "-", "-", ""
    return (*(f"{value:.2f}" for value in _cuts(times)), _share(times))


def _cuts(times: Percentiles) -> tuple[float, float, float]:
    return times.p50, times.p95, times.p99


def _share(times: Percentiles) -> str:
    return "" if times.kernel_share is None else f"{times.kernel_share:.0%}"


def _short(ms: float) -> str:
    """Return milliseconds in four characters, up to ten seconds."""
    return f"{ms:.2f}" if ms < 9.995 else f"{ms:.1f}" if ms < 99.95 else f"{ms:.0f}"
