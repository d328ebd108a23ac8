"""The progress of scenarios: a line for each that has ended, and below them a bar when a person looks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from lab.scenario.records import NOT_RUN, PASSED, RUNNING, SKIPPED, Record, short_name

_FEW = 5
"""Scenarios that must have ended before the time that is left can be told."""


class ScenarioProgress:
    """A context manager that tells how far a run is: `look` with the records that changed, and with all of them.

    On a terminal the last lines are a bar with counts, the time that is left, and what runs; they are gone at the end.
    Nothing is drawn unless something changed or a second went by.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: set[str] = set()
        self._started = time.monotonic()
        self._shown = -1
        self._stack = ExitStack()
        self._live: Live | None = None
        counts = TextColumn("{task.fields[failed]}[dim]{task.fields[times]}[/]")
        self._bar = Progress(TextColumn(" "), BarColumn(), MofNCompleteColumn(), counts, console=console)
        self._task = self._bar.add_task("scenarios", total=None, failed="", times="")

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            # Without a thread of its own: what runs meanwhile is measured.
            live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live = self._stack.enter_context(live)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def look(self, changed: Sequence[Record], records: Sequence[Record]) -> None:
        """Print a line for each scenario that has come to its end, and draw the bar anew."""
        for record in changed:
            if record.outcome not in (NOT_RUN, RUNNING) and record.name not in self._told:
                self._told.add(record.name)
                mark = {PASSED: "[green]ok[/]  ", SKIPPED: "skip"}.get(record.outcome, "[bold red]FAIL[/]")
                self._console.print(
                    f"  {mark} {escape(short_name(record.name))} ({record.seconds:.1f} s){_where(record)}"
                )
        second = int(time.monotonic() - self._started)
        if self._live is not None and (changed or second != self._shown):
            self._shown = second
            self._live.update(self._drawn(records, second), refresh=True)

    def stop(self) -> None:
        """Say that the nodes of what runs are being taken down, which can take a moment."""
        if self._live is not None:
            self._live.update(Text("  stopping: the nodes are taken down", style="dim"), refresh=True)

    def _drawn(self, records: Sequence[Record], seconds: int) -> Group:
        ended = sum(record.outcome not in (NOT_RUN, RUNNING) for record in records)
        failed = sum(record.bad for record in records)
        times = _clock(seconds)
        if _FEW <= ended < len(records):
            times += f", about {_clock(round(seconds * (len(records) - ended) / ended))} left"
        told = f"[bold red]{failed} failed[/]  " if failed else ""
        self._bar.update(self._task, completed=ended, total=len(records) or None, failed=told, times=times)
        running = ", ".join(short_name(record.name) for record in records if record.outcome == RUNNING)
        what = running or ("" if records else "collecting scenarios")
        return Group(self._bar, Text(f"  {what}", style="dim", no_wrap=True, overflow="ellipsis"))


def _where(record: Record) -> str:
    return f" [dim]on {escape(record.machine)}[/]" if record.machine else ""


def _clock(seconds: int) -> str:
    """Return seconds as 0:05, 12:34 or 1:02:03."""
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
