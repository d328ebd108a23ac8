"""What the tables of all measurements have in common."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lab.bench.rounds import NOISY


def table(title: str, *columns: str) -> Table:
    """Return an empty table: names on the left, then columns of figures."""
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for column in columns:
        made.add_column(column, justify="right")
    return made


def put(console: Console, filled: Table) -> None:
    """Print a table and an empty line."""
    console.print(filled)
    console.print()


def warn(console: Console, others: float) -> None:
    """Say so if other processes had more of the CPUs (0 to 1) than does the figures good."""
    if others > NOISY:
        share = f"{others:.0%}"
        console.print(f"warning: other processes had {share} of the CPUs meanwhile: measure again", highlight=False)
