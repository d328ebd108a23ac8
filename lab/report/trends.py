"""A history on the page: each metric over commits with its steps, and the steps as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lab.report.figure import Figure, Table, plain, readable
from lab.report.figure import number as shown
from lab.results.compare import Verdict
from lab.results.history import Lineage, Track
from lab.results.result import Better
from lab.results.steps import LibraryMissing
from lab.results.subject import short
from lab.results.trends import Checked, Finding, check
from lab.system.words import plural

_COLOURS = {Verdict.WORSE: "--bad", Verdict.BETTER: "--good"}


@dataclass(frozen=True, slots=True)
class Trend:
    """A series of a history: what was measured on which machine, a figure for each metric, and the steps in all.

    `good` tells whether nothing became worse; None if nothing can be said.
    """

    title: str
    good: bool | None
    sentence: str
    figures: Sequence[Figure]
    steps: Table


def trends(lineages: Sequence[Lineage], threshold: float) -> list[Trend]:
    """Return the series as the page shows them; `threshold` is the smallest change that counts as a step."""
    return [_trend(_checked(lineage, threshold)) for lineage in lineages]


def _checked(lineage: Lineage, threshold: float) -> Checked:
    """Look for steps; where that cannot be done, the courses are there without them."""
    try:
        return check(lineage, threshold)
    except LibraryMissing as error:
        tracks = lineage.tracks()
        return Checked(lineage, len(tracks), (), {track.name: str(error) for track in tracks})


def _trend(checked: Checked) -> Trend:
    newest = checked.lineage.entries[-1].result
    worse = [found for found in checked.findings if found.verdict is Verdict.WORSE]
    return Trend(
        f"{newest.bench} on {newest.machine.cpu_model}, kernel {newest.machine.kernel}",
        None if checked.unsaid and not worse else not worse,
        _sentence(checked, len(worse)),
        [_figure(track, checked) for track in checked.lineage.tracks()],
        _steps(checked),
    )


def _sentence(checked: Checked, worse: int) -> str:
    words = [plural(len(checked.lineage.commits), "commit"), plural(checked.metrics, "metric")]
    better = len(checked.findings) - worse
    words += [f"{plural(worse, 'step')} to the worse"] if worse else []
    words += [f"{plural(better, 'step')} to the better"] if better else []
    words += ["no step"] if not checked.findings and len(checked.unknown) < checked.metrics else []
    why = f" ({next(iter(reasons))})" if len(reasons := set(checked.unknown.values())) == 1 else ""
    words += [f"nothing can be said of {plural(len(checked.unknown), 'metric')}{why}"] if checked.unknown else []
    noisy = checked.lineage.noisy
    return ", ".join(words) + (f"; {plural(noisy, 'result')} of a busy machine left out of times" if noisy else "")


def _figure(track: Track, checked: Checked) -> Figure:
    """Draw a metric; one without a step is folded."""
    steps = [found for found in checked.findings if found.metric == track.name]
    said = "; ".join(said_of(step) for step in steps)
    better = "lower" if track.better is Better.LOWER else "higher"
    alt = f"{track.name} of {plural(len(track.values), 'commit')}, {better} is better: {said or 'no step'}."
    why = checked.unknown.get(track.name, "")
    factor, unit = readable(max(track.values, key=abs), track.unit)
    values = [value * factor for value in track.values]
    rows = [(commit, f"{value:.6g}") for commit, value in zip(track.commits, values, strict=True)]
    return Figure(
        f"{track.name}, {unit}",
        alt,
        {"data": [_course(track.commits, values, unit)], "layout": _layout(track.commits, steps, unit)},
        [Table(("commit", unit), rows, frozenset({1}), track.name)],
        height=220,
        note=f"Nothing can be said: {why}." if why else "",
        folded=not steps,
    )


def _course(commits: Sequence[str], values: Sequence[float], unit: str) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(range(len(values))),
        "y": values,
        "text": [plain(short(commit)) for commit in commits],
        "line": {"color": "--s1"},
        "marker": {"color": "--s1", "size": 5},
        "hovertemplate": f"%{{text}}: %{{y:.6g}} {plain(unit)}<extra></extra>",
    }


def _layout(commits: Sequence[str], steps: Sequence[Finding], unit: str) -> dict[str, object]:
    last = len(commits) - 1
    named = sorted({0, last, *(step.at for step in steps)})
    lines = [
        {
            "type": "line",
            "x0": step.at - 0.5,
            "x1": step.at - 0.5,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": _COLOURS[step.verdict], "width": 2, "dash": "dot"},
        }
        for step in steps
    ]
    ticks = {"tickvals": named, "ticktext": [plain(short(commits[at])) for at in named]}
    return {
        "xaxis": {"range": [-0.6, last + 0.6], "zeroline": False, "ticklabeloverflow": "allow", **ticks},
        "yaxis": {"title": {"text": plain(unit)}, "zeroline": False},
        "shapes": lines,
        "showlegend": False,
    }


def _steps(checked: Checked) -> Table:
    rows = [
        (
            step.metric,
            str(step.verdict),
            change_of(step),
            "exact" if step.p is None else f"{step.change.low:+.1%} to {step.change.high:+.1%}",
            short(step.old),
            short(step.new),
        )
        for step in checked.findings
    ]
    columns = ("metric", "verdict", "change", "interval of 95 %", "last before", "first after")
    return Table(columns, rows, frozenset({2, 3}), "Steps, and the commits between which they are")


def said_of(step: Finding) -> str:
    """Return a step in words, with the commits between which it is."""
    change = change_of(step)
    how = f"by {change}" if math.isfinite(step.change.middle) else change
    return f"{step.verdict} {how} between {short(step.old)} and {short(step.new)}"


def change_of(step: Finding) -> str:
    """Return by how much a metric has changed."""
    middle = step.change.middle
    return f"{'+' if middle > 0 else ''}{shown(middle * 100)} %" if math.isfinite(middle) else "from 0"
