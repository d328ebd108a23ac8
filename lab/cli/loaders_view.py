"""What `reloadlab bench reload --loader` prints: a table."""

from __future__ import annotations

from rich.markup import escape

from lab.bench.loaders import LoadersReport
from lab.cli.tables import make_table, print_table


def show(report: LoadersReport) -> None:
    """Print a row for each loader, compared with the first."""
    figures = ("best ms", "median ms", "x first", "quartiles")
    rounds = len(report.rows[0].seconds)
    table = make_table("loader", *figures, figures=figures, title=f"one reload of a pod, {rounds} rounds in turns")
    for row in report.rows:
        ratio, low, high = row.ratio(report.rows[0])
        times = f"{row.best * 1e3:.2f}", f"{row.median * 1e3:.2f}", f"{ratio:.2f}", f"{low:.2f} to {high:.2f}"
        table.add_row(escape(row.name), *times)
    print_table(table)
