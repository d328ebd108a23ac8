"""What `reloadlab bench topology` prints: a table."""

from __future__ import annotations

from collections.abc import Sequence

from lab.bench.topology import TopologyComparison
from lab.cli.tables import make_table, print_table
from lab.system.words import plural

_FIGURES = ("pods", "lab up ms", "script up ms", "ratio up", "lab down ms", "script down ms", "ratio down")


def show(rows: Sequence[TopologyComparison], start: float) -> None:
    """Print the medians of each size; `start` is what the interpreter takes to start, in seconds."""
    rounds = len(rows[0].lab)
    table = make_table(*_FIGURES, figures=_FIGURES, title=f"medians of {plural(rounds, 'round')}; ratio: script / lab")
    for row in rows:
        table.add_row(str(row.pods), *_cells(row, "up"), *_cells(row, "down"))
    print_table(table)
    print(f"within a running process; the command `up` adds {start * 1e3:.0f} ms for the interpreter and its imports")


def _cells(row: TopologyComparison, what: str) -> tuple[str, ...]:
    ours, script = row.median("lab", what) * 1e3, row.median("script", what) * 1e3
    return f"{ours:.1f}", f"{script:.1f}", f"{row.ratio(what):.2f}"
