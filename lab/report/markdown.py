"""Markdown as GitHub renders it: text in which nothing is markup, and tables."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from lab.report.wording import visible

_MARKS = re.compile(r"[\\`*_\[\]~$#!]")
_PIPE = "&#124;"
"""A bar that ends no cell of a table."""
CLOSING = "\n</details>\n\n"
"""Ends what `opening` began."""


def escaped(text: str) -> str:
    """Return text for a paragraph or a cell, in which nothing is Markdown or HTML; lines are broken where it breaks."""
    marked = _MARKS.sub(lambda found: f"\\{found[0]}", visible(text))
    return "<br>".join(html.escape(marked, quote=False).replace("|", _PIPE).splitlines())


def preformatted(text: str) -> str:
    """Return text as a block that is shown as it is. A blank line must stand before it."""
    return f"<pre>{html.escape(visible(text), quote=False)}</pre>\n"


def folded(title: str, body: str) -> str:
    """Return Markdown behind a title that one opens to see it; the title is plain text."""
    return f"{opening(title)}{body}{CLOSING}"


def opening(title: str) -> str:
    """Return what begins such a part; CLOSING ends it."""
    return f"<details><summary>{html.escape(visible(title), quote=False)}</summary>\n\n"


def table_row(cells: Sequence[str]) -> str:
    """Return a line of a table; the cells are Markdown."""
    return f"| {' | '.join(cells)} |\n"


def table_head(*columns: str, figures: Sequence[str] = ()) -> str:
    """Return the first two lines of a table; the columns named in `figures` stand to the right."""
    return table_row(columns) + f"|{'|'.join('--:' if column in figures else '---' for column in columns)}|\n"
