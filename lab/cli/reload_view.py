"""The output of `reloadlab bench reload`: tables."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rich.markup import escape
from rich.table import Table

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
    if report.calls.missing:
        print(f"time inside system calls: not measured: {report.calls.missing}")
    else:
        print_table(_shares(report))
    if report.many:
        print()
        print_table(_many(report))


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
    for share in report.calls.shares:
        times = (f"{seconds * 1e3:.2f}" for seconds in (share.wall, share.kernel, share.summed))
        rest = (f"{seconds * 1e3:.2f}" for seconds in (share.rest, share.user))
        rows.add_row(escape(share.name), *times, f"{share.wall / share.kernel:.2f}", *rest)
    return rows


def _steps(report: ReloadReport) -> Table:
    columns = ("ms", "traced: outside bpf(2), netlink ms")
    rows = make_table("step", *columns, figures=columns, title="the steps of the pipeline verifying in 1 thread")
    for step, seconds in report.steps.items():
        rest = f"{median(report.calls.rests[step]) * 1e3:.2f}" if step in report.calls.rests else "-"
        rows.add_row(escape(step), f"{median(seconds) * 1e3:.2f}", rest)
    return rows


def _many(report: ReloadReport) -> Table:
    figures = ("reloads/s", "x floor", "p50 ms", "p95 ms", "p99 ms")
    rows = make_table("", *figures, figures=figures, title="many pods, one after the other and in parallel")
    for row in report.many:
        times = row.report.reload
        percentiles = () if times is None else (f"{value:.2f}" for value in (times.p50, times.p95, times.p99))
        rate, ratio = f"{row.report.reloads_per_second:.1f}", f"{row.ratio:.2f}"
        rows.add_row(f"{report.pods} pods, {row.name}", rate, ratio, *percentiles)
    return rows
