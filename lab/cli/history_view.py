"""What `reloadlab history` prints: the metrics over commits, and the steps in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lab.cli.compare_options import NOT_COMPARABLE
from lab.cli.figures import figure, finite, percent, probability, scale, sparkline
from lab.cli.tables import add_row, make_table, print_table
from lab.results.compare import Verdict
from lab.results.history import Lineage, Track
from lab.results.subject import short
from lab.results.trends import Checked, Finding
from lab.system.words import plural

_TRACKS = ("metric", "commits", "first", "last", "change", "course")
_STEPS = ("metric", "change", "95 %", "p", "between", "and", "")


def exit_code(checked: Sequence[Checked]) -> int:
    """Return 1 if something became worse, 3 if nothing can be said of a benchmark, 0 otherwise."""
    if any(each.regressions for each in checked):
        return 1
    return NOT_COMPARABLE if nothing_said(checked) else 0


def show(lineages: Sequence[Lineage]) -> None:
    """Print a table for each series: a line per metric with its course."""
    for lineage in lineages:
        table = make_table(*_TRACKS, figures=_TRACKS[1:5], title=_title(lineage))
        for track in lineage.tracks():
            add_row(table, *_cells(track))
        print_table(table)
        print()


def _title(lineage: Lineage) -> str:
    newest, commits = lineage.entries[-1].result, lineage.commits
    span = f"{short(commits[0])} to {short(commits[-1])}" if len(commits) > 1 else short(commits[0])
    machine = f"{newest.machine.cpu_model or newest.machine.architecture}, kernel {newest.machine.kernel}"
    noise = f"; {plural(lineage.noisy, 'result')} too noisy" if lineage.noisy else ""
    return f"{lineage.name}: {newest.bench}, {plural(len(commits), 'commit')}, {span}; {machine}{noise}"


def _cells(track: Track) -> tuple[str, ...]:
    first, last = track.values[0], track.values[-1]
    factor, unit = scale(track.unit, (first, last))
    shown = (f"{value:,.12g} {unit}" if track.exact else f"{figure(value / factor)} {unit}" for value in (first, last))
    change = percent(last / first - 1) if first else "" if last == first else percent(math.inf)
    return track.name, str(len(track.values)), *shown, change, sparkline(track.values)


def show_steps(checked: Sequence[Checked]) -> None:
    """Print the steps of each series, then how many metrics have none."""
    for each in checked:
        if each.findings:
            table = make_table(*_STEPS, figures=_STEPS[1:4], title=_title(each.lineage))
            for found in each.findings:
                add_row(table, *_step_cells(found))
            print_table(table)
        else:
            print(_title(each.lineage))
        print(_closing(each))
        for why, number in _reasons(each).items():
            print(f"~ {plural(number, 'metric')}: {why}")
        print()


def _step_cells(found: Finding) -> tuple[str, ...]:
    change = found.change
    bounds = "" if found.p is None else f"{percent(change.low)} to {percent(change.high)}"
    p = "exact" if found.p is None else probability(found.p)
    verdict = str(found.verdict) if found.recent else f"{found.verdict}, before the commits that count"
    return found.metric, percent(change.middle), bounds, p, short(found.old), short(found.new), verdict


def _closing(checked: Checked) -> str:
    counts = {verdict: sum(found.verdict is verdict for found in checked.findings) for verdict in Verdict}
    steps = ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number) or "no step"
    looked_at = checked.metrics - len(checked.unknown)
    return f"{looked_at} of {plural(checked.metrics, 'metric')} looked at: {steps}"


def _reasons(checked: Checked) -> dict[str, int]:
    found = list(checked.unknown.values())
    return {why: found.count(why) for why in dict.fromkeys(found)}


def nothing_said(checked: Sequence[Checked]) -> str:
    """Return of which benchmarks nothing can be said, and why; empty if something can be said of each.

    The series of a benchmark that was measured last decides: those of former machines do not grow any more.
    """
    last: dict[str, Checked] = {}
    for each in checked:
        last.setdefault(each.lineage.entries[-1].result.bench, each)
    return "; ".join(f"{bench}: {each.unsaid}" for bench, each in last.items() if each.unsaid)


def to_json(lineages: Sequence[Lineage]) -> list[dict[str, Any]]:
    """Return the series as JSON values."""
    return [_lineage(lineage) | {"metrics": [_track(each) for each in lineage.tracks()]} for lineage in lineages]


def steps_to_json(checked: Sequence[Checked]) -> dict[str, Any]:
    """Return what was found as JSON values."""
    series = [
        _lineage(each.lineage) | {"steps": [_finding(found) for found in each.findings], "unknown": each.unknown}
        for each in checked
    ]
    return {"exit_code": exit_code(checked), "series": series}


def _lineage(lineage: Lineage) -> dict[str, Any]:
    newest = lineage.entries[-1].result
    return {
        "name": lineage.name,
        "bench": newest.bench,
        "kernel": newest.machine.kernel,
        "cpu_model": newest.machine.cpu_model,
        "commits": list(lineage.commits),
        "files": [entry.name for entry in lineage.entries],
        "noisy": lineage.noisy,
    }


def _track(track: Track) -> dict[str, Any]:
    return {
        "name": track.name,
        "unit": track.unit,
        "better": str(track.better),
        "exact": track.exact,
        "commits": list(track.commits),
        "values": list(track.values),
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "metric": found.metric,
        "old": found.old,
        "new": found.new,
        "change": finite(found.change.middle),
        "change_low": finite(found.change.low),
        "change_high": finite(found.change.high),
        "p": found.p,
        "verdict": str(found.verdict),
        "recent": found.recent,
    }
