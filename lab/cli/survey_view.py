"""What `reloadlab vm survey` prints: for the terminal, and as the tables of docs/kernels.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lab.cli.tables import add_row, make_table, print_table

if TYPE_CHECKING:
    from lab.vm.survey import Survey

Row = tuple[str, ...]


def print_survey(surveys: Sequence[Survey]) -> None:
    """Print a column per kernel; first what was tried, then the verifier's counts, then what failed and why."""
    for rows in (list(feature_rows(surveys)), list(program_rows(surveys))):
        table = make_table("", *(survey.label for survey in surveys))
        for row in rows:
            add_row(table, *row)
        print_table(table)
        print()
    for line in failures(surveys):
        print(line)


def markdown(surveys: Sequence[Survey]) -> str:
    """Return both tables in Markdown, and what failed below them."""
    heads = [f"{survey.label} ({survey.release})" for survey in surveys]
    parts = [
        _table(["", *heads], feature_rows(surveys)),
        _table(["verified instructions", *heads], program_rows(surveys)),
    ]
    return "\n\n".join([*parts, *([_list(failures(surveys))] if any(not survey.good for survey in surveys) else [])])


def feature_rows(surveys: Sequence[Survey]) -> Iterator[Row]:
    """Yield what was tried, with what it came to on each kernel (empty: not tried), and what the doctor misses."""
    for name in dict.fromkeys(check.name for survey in surveys for check in survey.checks):
        outcomes = [{check.name: check.good for check in survey.checks}.get(name) for survey in surveys]
        yield name, *({True: "ok", False: "FAIL", None: ""}[outcome] for outcome in outcomes)
    for name in dict.fromkeys(name for survey in surveys for name in survey.requirements or {}):
        states = [(survey.requirements or {}).get(name, "") for survey in surveys]
        if set(states) - {"ok", ""}:
            yield f"doctor: {name}", *states


def program_rows(surveys: Sequence[Survey]) -> Iterator[Row]:
    """Yield each program with the number of instructions that each kernel's verifier has looked at."""
    found = [survey.programs or {} for survey in surveys]
    for source in dict.fromkeys(source for programs in found for source in programs):
        for name in dict.fromkeys(name for programs in found for name in programs.get(source, {})):
            yield f"{source}: {name}", *(_count(programs.get(source, {}), name) for programs in found)


def failures(surveys: Sequence[Survey]) -> Iterator[str]:
    """Yield a line for each thing that failed."""
    for survey in surveys:
        if survey.failure:
            yield f"{survey.label}: {survey.failure}"
        yield from (f"{survey.label}: {check.name}: {check.message}" for check in survey.checks if not check.good)


def _count(programs: dict[str, int | None], name: str) -> str:
    if name not in programs:
        return ""
    count = programs[name]
    return "refused" if count is None else f"{count:,}"


def _table(heads: Sequence[str], rows: Iterator[Row]) -> str:
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |", 1) for cells in (heads, *(_dashed(row) for row in rows))]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def _dashed(row: Row) -> Row:
    return tuple(cell or "-" for cell in row)


def _list(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
