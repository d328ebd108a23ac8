"""The time line of a scenario, and the steps of one reload: bars that page.js draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datapath.reload import prepare
from lab.report.figure import HELPER, PREPARE, ROLLBACK, STARVED, SWITCH, TRAFFIC, Bar, Bars, duration, ms
from lab.report.places import end_of, parts_of, start_of, title
from lab.system.words import plural

Json = Mapping[str, Any]

PREPARING = frozenset(
    step.name
    for step in (
        prepare.Compile,
        prepare.WriteObject,
        prepare.RepinMaps,
        prepare.OpenMaps,
        prepare.MigrateMaps,
        prepare.LoadPrograms,
        prepare.FillArrays,
    )
)
"""Steps of the pipeline that no packet notices; of any other step it is not known."""

MOST_STEPS = 3000
"""Steps that a time line shows; of a scenario with more it has the reloads alone, and each reload its steps."""

_SEEN = 1000
"""Parts of the whole time that one can tell apart on a screen."""

_MARKS = 400
"""Moments that a figure marks; of more, the first ones."""


def origin_of(scenario: Json, reloads: Sequence[Json]) -> int:
    """Return when the first thing of a scenario happened that has a time."""
    times = [phase["started_ns"] for phase in scenario["traffic"]]
    times += [start_of(reload) for reload in reloads if parts_of(reload)]
    times += [at for finding in scenario["findings"] for at in finding["at_ns"]]
    return min(times, default=0)


def timeline(scenario: Json, reloads: Sequence[Json]) -> Bars:
    """Return reloads with their steps, a row for each subject, above them the traffic; findings where they happened."""
    origin = origin_of(scenario, reloads)
    subjects = list(dict.fromkeys(reload["subject"] for reload in reloads))
    rows = ["traffic", *subjects]
    detailed = sum(len(reload["spans"]) for reload in reloads) <= MOST_STEPS
    bars = list(_traffic(scenario, origin))
    for row, subject in enumerate(subjects, 1):
        own = [reload for reload in reloads if reload["subject"] == subject]
        bars += (bar for reload in own for bar in _steps(reload, row, origin)) if detailed else _whole(own, row, origin)
    axis = "ms since the scenario's first event"
    return Bars(rows, axis, bars, marks(scenario, origin), list(_sendings(scenario, origin)))


def marks(scenario: Json, origin: int, start: int = 0, end: int | None = None) -> list[tuple[float, str]]:
    """Return the findings of a scenario, or those between two times, as moments since an origin."""
    found = [
        (ms(at, origin), finding["what"])
        for finding in scenario["findings"]
        for at in finding["at_ns"]
        if at >= start and (end is None or at <= end)
    ]
    return sorted(found)[:_MARKS]


def waterfall(scenario: Json, reload: Json) -> Bars:
    """Return the steps of a reload, a row for each, with the work of other threads and the findings on them."""
    start, end = start_of(reload), end_of(reload)
    rows = [name for name, _ in parts_of(reload)]
    bars = list(_steps(reload, None, start))
    found = marks(scenario, start, start, end)
    return Bars(_unique(rows), "ms since the reload began", bars, found, title=title(reload))


def _sendings(scenario: Json, origin: int) -> Iterator[tuple[float, float, Sequence[int]]]:
    for phase in scenario["traffic"]:
        if parts := phase["sent_in_parts"]:
            length = (phase["stopped_ns"] - phase["started_ns"]) / len(parts)
            yield ms(phase["started_ns"], origin), ms(length), parts


def _traffic(scenario: Json, origin: int) -> Iterator[Bar]:
    for number, phase in enumerate(scenario["traffic"], 1):
        sent = sum(flow["sent"] for flow in phase["flows"])
        lost = sum(flow["lost"] for flow in phase["flows"])
        length = phase["stopped_ns"] - phase["started_ns"]
        text = f"traffic, phase {number}: {plural(sent, 'packet')} sent, {lost:,} lost, {duration(length)}"
        yield Bar(0, ms(phase["started_ns"], origin), ms(length), TRAFFIC, text)
        for pause in phase["starved"]:
            length = pause["end_ns"] - pause["start_ns"]
            text = f"traffic had no CPU for {duration(length)}"
            yield Bar(0, ms(pause["start_ns"], origin), ms(length), STARVED, text)


def _whole(reloads: Sequence[Json], row: int, origin: int) -> Iterator[Bar]:
    """Yield whole reloads; those between which one would see no gap are one bar."""
    known = sorted((reload for reload in reloads if parts_of(reload)), key=start_of)
    if not known:
        return
    gap = (max(map(end_of, known)) - start_of(known[0])) // _SEEN
    group: list[Json] = []
    for reload in known:
        if group and start_of(reload) - end_of(group[-1]) > gap:
            yield _group(group, row, origin)
            group = []
        group.append(reload)
    yield _group(group, row, origin)


def _group(reloads: Sequence[Json], row: int, origin: int) -> Bar:
    first, last = start_of(reloads[0]), max(map(end_of, reloads))
    what = f"reload of {title(reloads[0])}"
    if len(reloads) > 1:
        what = f"{plural(len(reloads), 'reload')} from {title(reloads[0])} to {title(reloads[-1])}"
    kind = ROLLBACK if any(reload["error"] for reload in reloads) else SWITCH
    return Bar(row, ms(first, origin), ms(last - first), kind, f"{what}: {duration(last - first)}")


def _steps(reload: Json, row: int | None, origin: int) -> Iterator[Bar]:
    """Yield the steps of a reload in one row, or a row for each."""
    for number, span in enumerate(reload["spans"]):
        kind = PREPARE if span["step"] in PREPARING else SWITCH
        place = number if row is None else row
        yield _bar(span["work"], place, kind, f"{span['step']} {span['target']} ({title(reload)})", origin)
        for helper in span["helpers"] if row is None else ():
            yield _bar(helper, place, HELPER, f"{span['step']} {span['target']}, thread {helper['tid']}", origin)
    if reload["rollback"] is not None:
        place = len(reload["spans"]) if row is None else row
        yield _bar(reload["rollback"], place, ROLLBACK, f"rollback ({title(reload)}: {reload['error']})", origin)


def _bar(work: Json, row: int, kind: int, text: str, origin: int) -> Bar:
    length = work["end_ns"] - work["start_ns"]
    return Bar(row, ms(work["start_ns"], origin), ms(length), kind, f"{text}: {duration(length)}")


def _unique(rows: Sequence[str]) -> list[str]:
    """Return names of rows that differ: a step that comes twice is numbered."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        seen[row] = seen.get(row, 0) + 1
        found.append(row if seen[row] == 1 else f"{row} ({seen[row]})")
    return found
