"""A run as Markdown, for the summary of a CI job: counts, what failed with its findings, and the rest folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.report.markdown import CLOSING, escaped, folded, opening, preformatted, table_head, table_row
from lab.report.wording import Document, ended_by, first_line, headline
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED, short_name

LIMIT = 1 << 20
"""Bytes that GitHub takes for the summary of a step."""
LEAST = 1 << 13
"""Bytes below which nothing is written: less than the counts and notes of a run may take."""

FINDINGS = 8
"""Findings of one scenario that are rows of the table."""
_LONGEST = 20_000
"""Characters of one message that are shown."""
_LONGEST_CELL = 2000
_NOTES = 1 << 12
"""Bytes that are left for what tells how much did not fit."""

_BAD = (FAILED, ERROR, RUNNING)
_OUTCOMES = (PASSED, FAILED, ERROR, SKIPPED, NOT_RUN)
_TIMES = ("p50", "p95", "p99")


def summary(run: Document, room: int = LIMIT) -> str:
    """Return the summary of a run.json (docs/run-json.md) in at most `room` bytes; empty if `room` is below LEAST.

    Sections and rows that do not fit are told by their number.
    """
    if room < LEAST:
        return ""
    page = _Page(room - _NOTES)
    bad = [scenario for scenario in run["scenarios"] if scenario["outcome"] in _BAD]
    rest = [scenario for scenario in run["scenarios"] if scenario["outcome"] not in _BAD]
    page.add(_heading(run) + _facts(run))
    if reason := ended_by(run):
        page.add(f"**{escaped(_cut(first_line(reason), _LONGEST_CELL))}**\n\n")
        if "\n" in reason.strip():
            page.add(folded("the whole message", preformatted(_cut(reason, _LONGEST))))
    columns = ("scenario", "outcome", "reloads", "sent", "lost", "finding")
    failed = [line for scenario in bad for line in _failed(scenario)]
    page.section("### What failed\n\n" + table_head(*columns, figures=columns[2:5]), failed, "\n", "rows")
    if run["parallel"] is not None:
        _parallel(page, run["parallel"])
    page.section("### Not checked\n\n", [f"- {line}\n" for line in _not_checked(run["scenarios"])], "\n", "lines")
    page.section("### Messages\n\n", list(map(_message, bad)), "", "messages")
    columns = ("scenario", "outcome", "reloads", "sent", "lost", "s")
    title = f"{len(rest)} that did not fail"
    page.section(
        opening(title) + table_head(*columns, figures=columns[2:]), list(map(_other, rest)), CLOSING, "scenarios"
    )
    return "".join(page.parts)


@dataclass(slots=True)
class _Page:
    """Text that stops growing when `room` bytes are used up, except for notes about what is left out."""

    room: int
    parts: list[str] = field(default_factory=list)

    def add(self, text: str) -> bool:
        """Add text as a whole, or not at all; tell whether it fitted."""
        size = len(text.encode())
        if size > self.room:
            return False
        self.room -= size
        self.parts.append(text)
        return True

    def section(self, opening: str, items: Sequence[str], closing: str, things: str) -> None:
        """Add what fits of a section; nothing if it has no items."""
        if not items:
            return
        self.room -= len(closing.encode())
        fitted = 0
        if self.add(opening):
            fitted = next((number for number, item in enumerate(items) if not self.add(item)), len(items))
            self.parts.append(closing)
        if fitted < len(items):
            self.parts.append(
                f"{len(items) - fitted} of {len(items)} {things} did not fit here; run.json has them.\n\n"
            )


def _heading(run: Document) -> str:
    counts = Counter(scenario["outcome"] for scenario in run["scenarios"])
    found = [f"{counts[outcome]} {outcome}" for outcome in (*_OUTCOMES, RUNNING) if counts[outcome]]
    told = ", ".join(found) or "no scenarios"
    return f"## reloadlab: {told}\n\n"


def _facts(run: Document) -> str:
    """Return the counts, and what ran where."""
    scenarios = run["scenarios"]
    sums = {name: sum(scenario[name] for scenario in scenarios) for name in ("reloads", "sent", "lost")}
    outcomes = {name: sum(scenario["outcome"] == name for scenario in scenarios) for name in _OUTCOMES}
    counts: dict[str, Any] = outcomes | sums | {"seconds": round(run["seconds"])}
    facts = [*_where(run), f"reloadlab {run['version']}"]
    facts += [f"{name} {value}" for name, value in run["subject"].items() if not name.endswith("sha256")]
    table = table_head(*counts, figures=tuple(counts)) + table_row([str(number) for number in counts.values()])
    return f"{table}\n{escaped(', '.join(facts))}\n\n"


def _where(run: Document) -> Iterator[str]:
    """Yield what ran the scenarios: this machine, or each of several."""
    for machine in run["machines"]:
        lost = f", lost: {machine['lost']}" if machine["lost"] else ""
        yield f"{machine['name']} (kernel {machine['kernel']}, {machine['workers']} workers{lost})"
    if not run["machines"]:
        yield from (f"kernel {run['machine']['kernel']}", f"{run['machine']['cpus']} CPUs")


def _name(scenario: Document) -> str:
    """Return the name of a scenario, and where it ran if that was on another machine."""
    where = f" on {scenario['machine']}, kernel {scenario['kernel']}" if scenario["machine"] else ""
    return escaped(short_name(scenario["name"]) + where)


def _failed(scenario: Document) -> Iterator[str]:
    """Yield the rows of a scenario that failed: one for each finding, or one that says why."""
    found = scenario["violations"][:FINDINGS] or [headline(scenario)]
    more = len(scenario["violations"]) - FINDINGS
    numbers = [str(scenario[name]) for name in ("reloads", "sent", "lost")]
    first = [_name(scenario), scenario["outcome"], *numbers]
    for number, finding in enumerate([*found, *([f"and {more} more"] if more > 0 else [])]):
        yield table_row([*(first if number == 0 else [""] * len(first)), escaped(_cut(finding, _LONGEST_CELL))])


def _message(scenario: Document) -> str:
    return folded(short_name(scenario["name"]), preformatted(_cut(scenario["message"], _LONGEST)))


def _other(scenario: Document) -> str:
    numbers = [str(scenario[name]) for name in ("reloads", "sent", "lost")]
    outcome = scenario["outcome"] if scenario["outcome"] == PASSED else escaped(_outcome(scenario))
    return table_row([_name(scenario), outcome, *numbers, f"{scenario['seconds']:.1f}"])


def _outcome(scenario: Document) -> str:
    """Return the outcome of a scenario that neither passed nor failed, with its reason."""
    why = _cut(headline(scenario), _LONGEST_CELL)
    return why if scenario["outcome"] == NOT_RUN else f"{scenario['outcome']}: {why}"


def _not_checked(scenarios: Iterable[Document]) -> Iterator[str]:
    """Yield what was not checked, and why scenarios were skipped, with the number of scenarios."""
    scenarios = list(scenarios)
    gaps = Counter(gap for scenario in scenarios for gap in scenario["gaps"])
    skipped = Counter(headline(scenario) for scenario in scenarios if scenario["outcome"] == SKIPPED)
    for what, found in (("", gaps), ("skipped: ", skipped)):
        for text, number in found.most_common():
            where = "1 scenario" if number == 1 else f"{number} scenarios"
            yield f"{what}{escaped(_cut(text, _LONGEST_CELL))} ({where})"


def _parallel(page: _Page, report: Document) -> None:
    columns = ("workers", "reloads/s", *(f"{time} ms" for time in _TIMES))
    lines = []
    for each in report["workers"]:
        times = ["-"] * len(_TIMES) if each["reload"] is None else [f"{each['reload'][time]:.2f}" for time in _TIMES]
        lines.append(table_row([str(each["workers"]), f"{each['reloads_per_second']:.0f}", *times]))
    sent = f"\n{report['pods']} pods, {report['rounds']} rounds; {report['sent']} packets of other pods sent, "
    page.section(
        "### Parallel reloads\n\n" + table_head(*columns, figures=columns),
        lines,
        f"{sent}{report['lost']} lost\n\n",
        "rows",
    )
    wrong = [f"- {escaped(_cut(text, _LONGEST_CELL))}\n" for text in (*report["failures"], *report["problems"])]
    page.section("Parallel reloads failed:\n\n", wrong, "\n", "problems")


def _cut(text: str, longest: int) -> str:
    """Return text of at most so many characters; of a longer one, the beginning and how much is missing."""
    more = len(text) - longest
    return text if more <= 0 else f"{text[:longest]} ... and {more} characters more in run.json"
