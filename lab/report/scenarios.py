"""Scenarios: the rows of their table, and what is shown of one when it is opened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.report.figure import Figure, Table, duration, number
from lab.report.layout import Picture, pictures
from lab.report.node import Drawing, drawings
from lab.report.places import Place, Places, end_of, parts_of, start_of, title
from lab.report.timeline import MOST_STEPS, origin_of, timeline, waterfall
from lab.report.wording import headline
from lab.scenario.records import ERROR, FAILED, NOT_RUN, PASSED, RUNNING, SKIPPED, short_name
from lab.system.words import plural

Json = Mapping[str, Any]

WORST_FIRST = (FAILED, ERROR, RUNNING, NOT_RUN, SKIPPED, PASSED)
SIGNS = {FAILED: "✗", ERROR: "!", RUNNING: "…", NOT_RUN: "–", SKIPPED: "»", PASSED: "✓"}
"""A sign for every outcome, so that colour is not the only one."""

LISTED = 300
"""Reloads that the table of a scenario lists; any other is found by its number."""

_LISTS = ("reloads", "failed_reloads")
_NEITHER: Json = {"attached": (), "migrated": (), "warnings": (), "error": "", "rollback": None}
"""What a reload of one of the lists has in place of the keys of the other."""

_KINDS = 12
"""Places that are told of one finding; most of its packets are at the first."""


@dataclass(frozen=True, slots=True)
class Told:
    """A finding: what it is, and how many of its packets or events were where, the most frequent place first."""

    what: str
    places: Sequence[tuple[int, str, str]] = ()
    more: int = 0

    @property
    def where(self) -> str:
        """The first place in words; empty for what has no time."""
        return self.places[0][1] if self.places else ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario with its reloads, and where its findings fall."""

    record: Json
    reloads: Sequence[Json]
    findings: Sequence[Told]
    touched: Counter[int]
    """How many moments of findings fall into each reload, by its number."""
    nodes: Sequence[tuple[Json, Json]]
    """Its nodes, each with its shape."""

    @property
    def name(self) -> str:
        return short_name(self.record["name"])

    @property
    def outcome(self) -> str:
        return str(self.record["outcome"])

    @property
    def bad(self) -> bool:
        return self.outcome in (FAILED, ERROR)

    @property
    def sign(self) -> str:
        return SIGNS.get(self.outcome, "?")

    @property
    def where(self) -> str:
        """The machine that ran it, one of several, and its kernel; empty in a run on one machine."""
        machine = self.record.get("machine", "")
        return f"{machine}, {self.record['kernel']}" if machine else ""

    @property
    def seconds(self) -> str:
        return f"{self.record['seconds']:.1f}"

    @property
    def search(self) -> str:
        """What the filter looks at: name, subjects, what was found."""
        subjects = dict.fromkeys(str(reload["subject"]) for reload in self.reloads)
        found = " ".join(finding.what for finding in self.findings)
        return " ".join((self.name, self.record["name"], self.where, *subjects, found, self.headline)).lower()

    @property
    def headline(self) -> str:
        """Why it did not pass, in one line; empty if it did."""
        return headline(self.record)


def scenarios_of(run: Json) -> list[Scenario]:
    """Return the scenarios of a run, what went wrong first."""
    reloads: dict[str, list[Json]] = defaultdict(list)
    clusters = {each["scenario"] for key in _LISTS for each in run[key] if each["node"] > 1}
    clusters |= {each["name"] for each in run["scenarios"] if any(node["number"] > 1 for node in each.get("nodes", ()))}
    for key in _LISTS:
        for each in run[key]:
            reloads[each["scenario"]].append(_reload(each, named=each["scenario"] in clusters))
    rank = {outcome: place for place, outcome in enumerate(WORST_FIRST)}
    ordered = sorted(run["scenarios"], key=lambda record: (rank.get(record["outcome"], len(rank)), record["name"]))
    shapes = run.get("nodes", ())
    return [
        _scenario(
            record,
            sorted(reloads[record["name"]], key=start_of),
            [(node, shapes[node["shape"]]) for node in record.get("nodes", ())],
        )
        for record in ordered
    ]


def _reload(reload: Json, *, named: bool) -> Json:
    """Return a reload, failed or not, with the keys of both kinds; the subject has its node before it if `named`."""
    subject = f"{reload['node']}/{reload['subject']}" if named else reload["subject"]
    return {**_NEITHER, **reload, "subject": subject}


def _scenario(record: Json, reloads: Sequence[Json], nodes: Sequence[tuple[Json, Json]]) -> Scenario:
    places, origin = Places(reloads), origin_of(record, reloads)
    touched: Counter[int] = Counter()
    told = []
    for finding in record["findings"]:
        found = [(at, places.find(at)) for at in finding["at_ns"]]
        touched.update(place.reload for _, place in found if place.reload is not None)
        told.append(_told(finding["what"], found, origin))
    timed = {finding["what"] for finding in record["findings"]}
    told += [Told(what) for what in record["violations"] if what not in timed]
    return Scenario(record, reloads, told, touched, nodes)


def _told(what: str, found: Sequence[tuple[int, Place]], origin: int) -> Told:
    groups: dict[tuple[str, int | None], list[int]] = defaultdict(list)
    for at, place in found:
        # Without the time after the beginning, which differs for each packet.
        groups[place.text.rpartition(", ")[0] or place.text, place.reload].append(at)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows = [(len(times), text, _times(times, origin)) for (text, _), times in ordered]
    return Told(what, rows[:_KINDS], max(len(rows) - _KINDS, 0))


def _times(times: Sequence[int], origin: int) -> str:
    """Return first and last of some times, counted from an origin."""
    first, last = min(times) - origin, max(times) - origin
    return f"+{first / 1e6:,.2f} ms" if first == last else f"+{first / 1e6:,.2f} to +{last / 1e6:,.2f} ms"


def flows_table(record: Json) -> Table | None:
    """Return what became of the traffic, a row for each flow of each phase; None without traffic."""
    columns = ("flow", "phase", "sent", "lost", "other events", "p50", "p99", "slowest", "slowest sent at")
    origin = min((phase["started_ns"] for phase in record["traffic"]), default=0)
    rows = [
        (flow["name"], str(place), *_flow(flow, origin))
        for place, phase in enumerate(record["traffic"], 1)
        for flow in phase["flows"]
    ]
    # Those that lost most are first, the others as they were.
    rows.sort(key=lambda row: -int(row[3].replace(",", "")))
    return Table(columns, rows, frozenset({1, 2, 3, 5, 6, 7, 8}), "Flows") if rows else None


def _flow(flow: Json, origin: int) -> tuple[str, ...]:
    delays = flow["delays"]
    events = ", ".join(f"{count} {kind}" for kind, count in flow["events"].items() if kind != "lost")
    words = ("denied on purpose" if flow["denied"] else "") + (f" {events}" if events else "")
    if not delays["count"]:
        return f"{flow['sent']:,}", f"{flow['lost']:,}", words.strip() or "-", "-", "-", "-", "-"
    cuts = (duration(delays[name]) for name in ("p50_ns", "p99_ns", "worst_ns"))
    at = f"+{(delays['worst_sent_ns'] - origin) / 1e6:,.1f} ms"
    return f"{flow['sent']:,}", f"{flow['lost']:,}", words.strip() or "-", *cuts, at


@dataclass(frozen=True, slots=True)
class Listed:
    """A reload as the table of a scenario lists it."""

    number: int
    title: str
    start: str
    duration: str
    slowest: str
    findings: int
    warnings: str
    migrated: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What is shown of a scenario that is opened; `waterfalls` has the steps of every reload, by number."""

    scenario: Scenario
    timeline: Figure | None
    listed: Sequence[Listed]
    flows: Table | None
    nodes: Sequence[tuple[Drawing, Sequence[Picture]]]
    first: int
    """The reload whose steps are shown first: that with the most findings."""

    def waterfalls(self) -> list[Mapping[str, Any]]:
        return [waterfall(self.scenario.record, reload).to_json() for reload in self.scenario.reloads]


def open_scenario(scenario: Scenario) -> Opened:
    """Return what is shown of a scenario."""
    numbers = list(range(len(scenario.reloads)))
    if len(numbers) > LISTED:
        # Those with findings first, then the first ones.
        numbers = sorted(sorted(numbers, key=lambda place: -scenario.touched[place])[:LISTED])
    origin = origin_of(scenario.record, scenario.reloads)
    return Opened(
        scenario,
        _figure(scenario),
        [_listed(scenario, place, origin) for place in numbers],
        flows_table(scenario.record),
        [(node, pictures(node)) for node in drawings(scenario.reloads, scenario.nodes)],
        max(numbers, key=lambda place: scenario.touched[place], default=0),
    )


def _figure(scenario: Scenario) -> Figure | None:
    record, reloads = scenario.record, scenario.reloads
    if not reloads and not record["traffic"]:
        return None
    bars = timeline(record, reloads)
    steps = sum(len(reload["spans"]) for reload in reloads)
    failed = sum(bool(reload["error"]) for reload in reloads)
    moments = sum(len(finding["at_ns"]) for finding in record["findings"])
    alt = (
        f"Time line of {scenario.name}: {plural(len(reloads), 'reload')} ({failed} failed) with "
        f"{plural(steps, 'step')}, "
        f"{plural(record['sent'], 'packet')} sent, {record['lost']:,} lost, "
        f"{plural(moments, 'moment')} at which something was found. The tables have the same."
    )
    note = "" if steps <= MOST_STEPS else f"{steps:,} steps: here are whole reloads, below the steps of each."
    return Figure("Time line", alt, bars.to_json(), height=110 + 34 * len(bars.rows), note=note)


def _listed(scenario: Scenario, place: int, origin: int) -> Listed:
    reload = scenario.reloads[place]
    slowest = max(reload["spans"], key=lambda span: _length(span["work"]), default=None)
    step = "-" if slowest is None else f"{slowest['step']} {duration(_length(slowest['work']))}"
    start = f"+{(start_of(reload) - origin) / 1e6:,.1f}" if parts_of(reload) else "-"
    length = number((end_of(reload) - start_of(reload)) / 1e6) if parts_of(reload) else "-"
    migrated = ", ".join(reload["migrated"]) or "-"
    warnings = reload["error"] or ", ".join(reload["warnings"]) or "-"
    return Listed(place, title(reload), start, length, step, scenario.touched[place], warnings, migrated)


def _length(work: Json) -> int:
    return int(work["end_ns"]) - int(work["start_ns"])


def outcomes(scenarios: Sequence[Scenario]) -> Iterator[tuple[str, str, int]]:
    """Yield each outcome that there is, with its sign and how many scenarios have it, the worst first."""
    counts = Counter(scenario.outcome for scenario in scenarios)
    for outcome in sorted(counts, key=lambda each: (*WORST_FIRST, each).index(each)):
        yield outcome, SIGNS.get(outcome, "?"), counts[outcome]
