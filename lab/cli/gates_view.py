"""What `reloadlab bench gates` prints: a table."""

from __future__ import annotations

from lab.bench.gates import GatesReport
from lab.cli.tables import make_table, print_table
from lab.system.words import plural

_FIGURES = ("median ns", "best ns", "more than without, ns")


def show(report: GatesReport) -> None:
    """Print what one call takes in each way, and what that is more than without a filter."""
    rounds = len(next(iter(report.calls.values()))[0].seconds)
    table = make_table("call", "", *_FIGURES, figures=_FIGURES, title=f"one call, medians of {plural(rounds, 'round')}")
    for call, measurements in report.calls.items():
        for measurement in measurements:
            more = _nanoseconds(measurement.median - measurements[0].median)
            times = (_nanoseconds(measurement.median), _nanoseconds(measurement.best))
            table.add_row(
                call, measurement.name, *map(str, times), str(more) if measurement is not measurements[0] else ""
            )
    print_table(table)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
