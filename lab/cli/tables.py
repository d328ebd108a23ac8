"""Tables, the same for all commands: a headline, a line per row, nothing wrapped."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lab.cli.targets import make_console

if TYPE_CHECKING:
    from rich.table import Table


WIDEST = 10_000
"""Columns of a terminal that no table fills."""


def make_table(*columns: str, figures: Collection[str] = (), title: str = "") -> Table:
    """Return an empty table; the columns named in `figures` stand to the right."""
    from rich.table import Table
    from rich.text import Text

    # A title is not part of the columns: it may be wider than they are.
    headline = Text(title, style="bold", no_wrap=True, overflow="ignore") if title else None
    table = Table(title=headline, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in figures else "left", no_wrap=True)
    return table


def table_of(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Table:
    """Return a table with a line per row: the keys of all rows are its columns; numbers stand to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    figures = [name for name in names if all(type(row.get(name, 0)) is int for row in rows)]
    headings = {name: name.replace("_", " ") for name in names}
    table = make_table(*headings.values(), figures=[headings[name] for name in figures], title=title)
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text; brackets in it are no markup, and an empty cell is shown as `-`."""
    from rich.markup import escape

    table.add_row(*(escape(cell) or "-" for cell in cells))


def print_table(table: Table) -> None:
    """Print a table, as wide as it is: what reads it, be it awk, has one line per row."""
    from rich.measure import Measurement

    console = make_console()
    natural = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    console.width = max(console.width, natural)
    with console.capture() as captured:
        console.print(table, crop=False)
    text = captured.get()
    # Cells are filled up to the width of their columns, which only styled ones need.
    sys.stdout.write(text if console.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def _cell(value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, list | tuple):
        return escape(" ".join(map(str, value))) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None or value == "" else escape(str(value))
