"""The output of `reloadlab bench reload`: tables, or JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lab.bench.parallel import WorkerReport
from lab.bench.reload import ReloadReport
from lab.bench.rounds import Measurement
from lab.cli.tables import make_table, print_table


def show(report: ReloadReport) -> None:
    """Print a report as tables."""
    hooks = ", ".join(report.hooks)
    name = Path(report.object).name
    print(
        f"{name}: {report.programs} programs, {report.instructions:,} instructions; {report.reached} of them "
        f"reached from {hooks}\n"
    )
    print_table(_one(report))
    for row in report.rows:
        if row.refusal:
            print(f"{row.name}: not possible: {row.refusal}")
    print()
    print_table(_steps(report))
    print()
    if report.no_shares:
        print(f"time inside system calls: not measured: {report.no_shares}\n")
    else:
        print_table(_shares(report))
        print()
    print_table(_parallel(report))


def _one(report: ReloadReport) -> Table:
    rounds = len(report.rows[0].seconds)
    figures = ("best ms", "median ms", "x floor", "quartiles")
    rows = make_table("", *figures, figures=figures, title=f"one reload, {rounds} rounds in turns")
    for row in report.rows:
        rows.add_row(escape(row.name), *_figures(row, report.rows[0]))
    return rows


def _figures(row: Measurement, floor: Measurement) -> tuple[str, ...]:
    if row.refusal:
        return ("-", "-", "-", "not possible")
    ratio, low, high = row.ratio(floor)
    return f"{row.best * 1e3:.2f}", f"{row.median * 1e3:.2f}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"


def _shares(report: ReloadReport) -> Table:
    columns = ("wall ms", "in bpf(2), netlink ms", "of all threads ms", "ratio", "rest ms", "untraced: user ms")
    rows = make_table("", *columns, figures=columns, title="where its time goes (traced)")
    for share in report.shares:
        times = (f"{seconds * 1e3:.2f}" for seconds in (share.wall, share.kernel, share.summed))
        rest = (f"{seconds * 1e3:.2f}" for seconds in (share.rest, share.user))
        rows.add_row(escape(share.name), *times, f"{share.wall / share.kernel:.2f}", *rest)
    return rows


def _steps(report: ReloadReport) -> Table:
    columns = ("ms", "traced: outside bpf(2), netlink ms")
    rows = make_table("step", *columns, figures=columns, title="the steps of the pipeline verifying in 1 thread")
    for step, seconds in report.steps.items():
        rest = f"{report.rests[step] * 1e3:.2f}" if step in report.rests else "-"
        rows.add_row(escape(step), f"{seconds * 1e3:.2f}", rest)
    return rows


def _parallel(report: ReloadReport) -> Table:
    figures = ("reloads/s", "p50 ms", "p95 ms", "p99 ms")
    rows = make_table("", *figures, figures=figures, title="many pods, one after the other and in parallel")
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
        "object": {
            "path": report.object,
            "programs": report.programs,
            "reached": report.reached,
            "instructions": report.instructions,
        },
        "hooks": list(report.hooks),
        "other_processes": round(report.others, 3),
        "one": [_row_json(row, floor) for row in report.rows],
        "steps_ms": {step: _ms(seconds) for step, seconds in report.steps.items()},
        "steps_rest_ms": {step: _ms(seconds) for step, seconds in report.rests.items()},
        "system_calls": [
            {
                "name": share.name,
                "wall_ms": _ms(share.wall),
                "inside_ms": _ms(share.kernel),
                "inside_all_threads_ms": _ms(share.summed),
                "rest_ms": _ms(share.rest),
                "user_ms": _ms(share.user),
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
