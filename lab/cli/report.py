"""What `reloadlab run` prints and writes: scenarios, parallel reloads, and all of it as JSON."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datapath.base.statefile import WrongContent, parse_json
from lab.bench.rounds import BackgroundLoad
from lab.cli.targets import told, warned
from lab.results.machine import Machine
from lab.results.run import RUN_FORMAT, RunFacts
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, SKIPPED, Record, short_name
from lab.system.output import OutputDirectory
from lab.system.words import plural

if TYPE_CHECKING:
    from lab.bench.parallel import ParallelReport, Percentiles, WorkerReport

RUN_JSON = "run.json"

_PAUSE = 0.5
"""Seconds between two writings of run.json, at least."""

_KINDS = 5
"""Kinds of steps that one line names."""

_GAPS = 20
"""Texts of what was not checked that are printed."""

_STEP_WIDTH, _CELL_WIDTH = 15, 20
"""Columns for a step's name, and for the percentiles and the kernel's share of one worker count."""


def print_scenarios(console: Console, records: Sequence[Record]) -> None:
    """Print one line per scenario, then the reasons."""
    table = Table("scenario", "outcome", "reloads", "unseen", "sent", "lost", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    spread = any(record.machine for record in records)
    if spread:
        table.add_column("machine")
        table.add_column("kernel")
    for record in records:
        style = {PASSED: "green", SKIPPED: "default", NOT_RUN: "yellow"}.get(record.outcome, "bold red")
        table.add_row(
            escape(short_name(record.name)),
            f"[{style}]{record.outcome}[/]",
            str(len(record.reloads)),
            str(record.steps["unseen"]),
            str(record.sent),
            str(record.lost),
            *((escape(record.machine), escape(record.kernel)) if spread else ()),
        )
    console.print(table)
    print_steps(console, records)
    print_gaps(console, records)
    print_skipped(console, records)
    print_reasons(console, records)


def print_steps(console: Console, records: Sequence[Record]) -> None:
    """Print how many steps of reloads had packets under way, and which kinds of steps no scenario has seen."""
    seen = sum(record.steps["seen"] for record in records)
    total = seen + sum(record.steps["unseen"] for record in records)
    if total == 0:
        return
    never = _never_seen(records)
    more = f", ... and {len(never) - _KINDS} more" if len(never) > _KINDS else ""
    rest = f"; never: {', '.join(never[:_KINDS])}{more}" if never else ""
    console.print(
        f"\n{seen} of {total} steps had packets under way{rest}", markup=False, highlight=False, soft_wrap=True
    )


def _never_seen(records: Sequence[Record]) -> list[str]:
    """Return the kinds of steps that are unseen in every scenario that has them."""
    seen = {kind for record in records for kind in record.steps["seen_kinds"]}
    unseen = dict.fromkeys(kind for record in records for kind in record.steps["unseen_kinds"])
    return [kind for kind in unseen if kind not in seen]


def print_gaps(console: Console, records: Sequence[Record]) -> None:
    """Print what was not checked, and in how many scenarios: of that, a scenario that passed says nothing."""
    gaps = Counter(gap for record in records for gap in record.gaps)
    for gap, count in gaps.most_common(_GAPS):
        console.print(
            f"not checked in {plural(count, 'scenario')}: {gap}", markup=False, highlight=False, soft_wrap=True
        )
    if len(gaps) > _GAPS:
        console.print(f"... and {len(gaps) - _GAPS} more that are in {RUN_JSON}", highlight=False)


def print_skipped(console: Console, records: Sequence[Record]) -> None:
    """Print why scenarios were skipped, and how many for each reason."""
    reasons = Counter(record.message.removeprefix("Skipped: ") for record in records if record.outcome == SKIPPED)
    for reason, count in reasons.most_common():
        console.print(f"skipped {plural(count, 'scenario')}: {reason}", markup=False, highlight=False, soft_wrap=True)


def print_reasons(console: Console, records: Sequence[Record]) -> None:
    """Print the whole story of every scenario that failed."""
    for record in records:
        if record.bad:
            console.print(f"\n[bold red]{escape(short_name(record.name))}[/]")
            console.print(record.message, markup=False, highlight=False, soft_wrap=True)


def print_parallel(console: Console, report: ParallelReport) -> None:
    """Print the rates, then the percentiles of every step."""
    rates = Table("workers", "reloads/s", "p50 ms", "p95 ms", "p99 ms", "kernel", box=None, pad_edge=False)
    for column in rates.columns:
        column.justify = "right"
    for row in report.workers:
        rates.add_row(str(row.workers), f"{row.reloads_per_second:.0f}", *_cells(row.reload))
    console.print(rates)
    # As many worker counts side by side as there is room for: no cell is ever wrapped.
    fit = max((console.width - _STEP_WIDTH) // _CELL_WIDTH, 1)
    for first in range(0, len(report.workers), fit):
        console.print()
        console.print(_steps(report.workers[first : first + fit]))
    console.print(
        f"{report.pods} pods, {report.rounds} rounds; {report.sent} packets of other pods sent, {report.lost} lost",
        highlight=False,
    )
    if report.tracing is None:
        console.print("kernel, sys%: the part of the time that passed inside system calls", highlight=False)
    else:
        console.print(f"kernel share not measured: {report.tracing}", highlight=False)
    for line in (*report.failures, *report.problems):
        console.print(line, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _steps(rows: Sequence[WorkerReport]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("milliseconds\nof the step", no_wrap=True)
    for row in rows:
        title = plural(row.workers, "worker")
        table.add_column(f"{title}\np50/p95/p99", justify="right", no_wrap=True)
        table.add_column("\nsys%", justify="right", no_wrap=True)
    for step in dict.fromkeys(step for row in rows for step in row.steps):
        cells: list[str] = []
        for row in rows:
            times = row.steps.get(step)
            cells += ["", ""] if times is None else ["/".join(map(_short, _cuts(times))), _share(times)]
        table.add_row(step, *cells)
    return table


def run_json(
    scenarios: Sequence[Record],
    parallel: ParallelReport | None,
    seconds: float,
    *,
    complete: bool,
    about: RunFacts | None = None,
    error: str | None = None,
    others: float | None = None,
    machines: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Return the document that run.json holds; `complete` tells whether the run came to its end, `error` why not.

    `others` is the share of the CPUs that other processes had, None if it is not known. `machines` are those of a run
    over several.
    """
    shapes = Shapes()
    rows = [
        record.to_json()
        | {
            "reloads": len(record.reloads),
            "failed_reloads": len(record.failed_reloads),
            "nodes": [{**node, "shape": shapes.number(node["shape"])} for node in record.nodes],
        }
        for record in scenarios
    ]
    return {
        "format": RUN_FORMAT,
        "complete": complete,
        "error": error,
        **(about or RunFacts.now({})).to_json(others),
        "seconds": round(seconds, 3),
        "machines": list(machines),
        "scenarios": rows,
        "nodes": shapes.found,
        "reloads": [{"scenario": record.name, **reload} for record in scenarios for reload in record.reloads],
        "failed_reloads": [
            {"scenario": record.name, **reload} for record in scenarios for reload in record.failed_reloads
        ],
        "parallel": parallel.to_json() if parallel is not None else None,
    }


class Shapes:
    """The shapes of nodes in a run, each once; a scenario has their numbers."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def number(self, shape: dict[str, Any]) -> int:
        """Return the number of a shape, which is new or has one."""
        number = self._numbers.setdefault(json.dumps(shape), len(self.found))
        if number == len(self.found):
            self.found.append(shape)
        return number


def failed_before(text: str | None) -> list[str]:
    """Return what had failed according to a run.json, given as text; nothing if it is none or of another format."""
    try:
        document: Any = None if text is None else parse_json(text.encode(errors="replace"))
        if document is None or document["format"] != RUN_FORMAT:
            return []
        return [str(each["name"]) for each in document["scenarios"] if each["outcome"] in (FAILED, ERROR)]
    except (WrongContent, KeyError, TypeError):
        return []


class RunFile:
    """run.json, written anew again and again while the run goes on; `document` and `text` are what it holds.

    A context manager: what is raised inside is the `error` of the run.
    """

    def __init__(self, output: OutputDirectory, about: RunFacts | None = None) -> None:
        self._output = output
        self._about = about or RunFacts.now({})
        self._background = BackgroundLoad()
        self._scenarios: Sequence[Record] = ()
        self._started = time.monotonic()
        self._next = self._started
        self._stale = False
        self.before = failed_before(output.read(RUN_JSON))
        self.parallel: ParallelReport | None = None
        self.machines: Sequence[dict[str, Any]] = ()
        self.document: dict[str, Any] = {}
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if value is not None:
            with warned():
                self.write(self._scenarios, error=told(value))

    @property
    def path(self) -> Path:
        return self._output.path / RUN_JSON

    @property
    def seconds(self) -> float:
        """What the run has taken until now."""
        return time.monotonic() - self._started

    def measured_on(self, machine: Machine) -> None:
        """Take the facts of the one machine that runs all of it, if that is not this one."""
        self._about = replace(self._about, machine=machine)

    def update(self, scenarios: Sequence[Record], *, changed: bool) -> None:
        """Write the file if something has changed, unless writing would take more than a small part of the time.

        What fails is written at once: whoever ends the machine of a run then has the reason.
        """
        self._stale = self._stale or changed
        begun = time.monotonic()
        if self._stale and (begun >= self._next or _bad(scenarios) > _bad(self._scenarios)):
            self.write(scenarios)
            self._next = time.monotonic() + max(_PAUSE, 20 * (time.monotonic() - begun))

    def write(self, scenarios: Sequence[Record], *, complete: bool = False, error: str | None = None) -> None:
        """Write the file now; OSError tells why it cannot be written."""
        self._scenarios = scenarios
        # It is told of the whole run alone.
        others = round(self._background.share(), 4) if complete else None
        options: dict[str, Any] = {"complete": complete, "about": self._about, "error": error, "others": others}
        options["machines"] = self.machines
        self.document = run_json(scenarios, self.parallel, self.seconds, **options)
        self.text = json.dumps(self.document, indent=1) + "\n"
        self._output.write(RUN_JSON, self.text)
        self._stale = False


def _bad(scenarios: Sequence[Record]) -> int:
    return sum(scenario.bad for scenario in scenarios)


def _cells(times: Percentiles | None) -> tuple[str, ...]:
    if times is None:
        return "-", "-", "-", ""
    return (*(f"{value:.2f}" for value in _cuts(times)), _share(times))


def _cuts(times: Percentiles) -> tuple[float, float, float]:
    return times.p50, times.p95, times.p99


def _share(times: Percentiles) -> str:
    return "" if times.kernel_share is None else f"{times.kernel_share:.0%}"


def _short(ms: float) -> str:
    """Return milliseconds in four characters, up to ten seconds."""
    return f"{ms:.2f}" if ms < 9.995 else f"{ms:.1f}" if ms < 99.95 else f"{ms:.0f}"
