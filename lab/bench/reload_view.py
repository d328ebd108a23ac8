"""What `reloadlab bench reload` prints: tables, or JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lab.bench.parallel import WorkerReport
from lab.bench.reload import ReloadReport
from lab.bench.rounds import Measurement
from lab.bench.tables import put, table, warn


def show(console: Console, report: ReloadReport) -> None:
    """Print a report as tables."""
    name = escape(Path(report.object).name)
    hooks = ", ".join(report.hooks)
    console.print(f"{name}: {report.programs} programs, {report.instructions:,} instructions; {hooks}", highlight=False)
    put(console, _one(report))
    warn(console, report.others)
    for row in report.rows:
        if row.refusal:
            console.print(f"{escape(row.name)}: not possible: {escape(row.refusal)}", highlight=False)
    steps = ", ".join(f"{step} {seconds * 1e3:.2f}" for step, seconds in report.steps.items())
    console.print(f"steps of the pipeline verifying in 1 thread, ms: {steps}\n", highlight=False)
    if report.no_shares:
        console.print(f"time inside system calls: not measured: {escape(report.no_shares)}\n", highlight=False)
    else:
        put(console, _shares(report))
    put(console, _parallel(report))


def _one(report: ReloadReport) -> Table:
    rounds = len(report.rows[0].seconds)
    rows = table(f"one reload, {rounds} rounds in turns", "best ms", "median ms", "x floor", "quartiles")
    for row in report.rows:
        rows.add_row(escape(row.name), *_figures(row, report.rows[0]))
    return rows


def _figures(row: Measurement, floor: Measurement) -> tuple[str, ...]:
    if row.refusal:
        return ("-", "-", "-", "not possible")
    ratio, low, high = row.ratio(floor)
    return f"{row.best * 1e3:.2f}", f"{row.median * 1e3:.2f}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"


def _shares(report: ReloadReport) -> Table:
    columns = ("wall ms", "in bpf(2), netlink ms", "of all threads ms", "ratio", "rest ms")
    rows = table("where its time goes (traced)", *columns)
    for share in report.shares:
        times = (f"{seconds * 1e3:.2f}" for seconds in (share.wall, share.kernel, share.summed))
        rows.add_row(escape(share.name), *times, f"{share.wall / share.kernel:.2f}", f"{share.userland * 1e3:.2f}")
    return rows


def _parallel(report: ReloadReport) -> Table:
    rows = table("many pods, one after the other and in parallel", "reloads/s", "p50 ms", "p95 ms", "p99 ms")
    for row in report.parallel:
        percentiles = (f"{value:.2f}" for value in _percentiles(row).values())
        rows.add_row(f"{report.pods} pods, {row.workers} at a time", f"{row.reloads_per_second:.1f}", *percentiles)
    return rows


def _percentiles(row: WorkerReport) -> dict[str, float]:
    """Return the percentiles of a whole reload in milliseconds; none if no reload succeeded."""
    times = row.reload
    return {} if times is None else {"p50_ms": times.p50, "p95_ms": times.p95, "p99_ms": times.p99}


def to_json(report: ReloadReport) -> dict[str, Any]:
    """Return the report as JSON values: milliseconds, ratios to the first row (the floor)."""
    floor = report.rows[0]
    return {
        "object": {"path": report.object, "programs": report.programs, "instructions": report.instructions},
        "hooks": list(report.hooks),
        "other_processes": round(report.others, 3),
        "one": [_row_json(row, floor) for row in report.rows],
        "steps_ms": {step: _ms(seconds) for step, seconds in report.steps.items()},
        "system_calls": [
            {
                "name": share.name,
                "wall_ms": _ms(share.wall),
                "inside_ms": _ms(share.kernel),
                "inside_all_threads_ms": _ms(share.summed),
                "userland_ms": _ms(share.userland),
                "ratio": round(share.wall / share.kernel, 3),
            }
            for share in report.shares
        ],
        "system_calls_missing": report.no_shares or None,
        "many": [
            {
                "workers": row.workers,
                "pods": report.pods,
                "reloads_per_second": round(row.reloads_per_second, 1),
                **{name: round(value, 3) for name, value in _percentiles(row).items()},
            }
            for row in report.parallel
        ],
    }


def _row_json(row: Measurement, floor: Measurement) -> dict[str, Any]:
    if row.refusal:
        return {"name": row.name, "refusal": row.refusal}
    ratio, low, high = row.ratio(floor)
    return {
        "name": row.name,
        "median_ms": _ms(row.median),
        "best_ms": _ms(row.best),
        "ratio_to_floor": round(ratio, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "rounds_ms": [_ms(seconds) for seconds in row.seconds],
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
