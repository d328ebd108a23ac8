"""The output of `reloadlab bench releases`: the medians of all releases side by side."""

from __future__ import annotations

from lab.cli.tables import add_row, make_table, print_table
from lab.report.sidebyside import groups_of, refusals, side_table
from lab.results.result import Result


def show(result: Result) -> None:
    """Print a table for each group of metrics, then what could not be measured."""
    for group in groups_of(result):
        if not group.measured:
            continue
        table = side_table(result, group)
        filled = make_table(*table.columns, figures=table.columns[1:], title=table.caption)
        for row in table.rows:
            add_row(filled, *row)
        print_table(filled)
        print()
    for side, metric, why in refusals(result):
        print(f"{side}: {metric} was not measured: {why}")
