"""A run as a trace that Perfetto and chrome://tracing open: reloads and their steps on the threads that ran them.

Each scenario is a process of the trace, and so are the parallel reloads of each number of workers; times count from the
first event of the run. What was found stands where it happened: a lost packet at the moment in which it was sent. A
reload that failed is one of the category `failed`, with its rollback behind it. The format is the Trace Event Format of
Chromium.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.system.words import plural

TRAFFIC = 0
"""The thread of a trace on which the phases of the traffic stand."""
_NS_PER_US = 1000

Event = dict[str, Any]
Document = Mapping[str, Any]


def trace(run: Document) -> Document:
    """Return the trace of a run.json (docs/run-json.md), as JSON values."""
    numbers = {scenario["name"]: number for number, scenario in enumerate(run["scenarios"], 1)}
    events = [event for scenario in run["scenarios"] for event in _scenario(scenario, numbers[scenario["name"]])]
    for reload in (*run["reloads"], *run["failed_reloads"]):
        events += _reload(reload, numbers[reload["scenario"]])
    for number, row in enumerate((run["parallel"] or {"workers": ()})["workers"], len(numbers) + 1):
        events += _parallel(row, number)
    start = min((event["ts"] for event in events if "ts" in event), default=0)
    for event in events:
        if "ts" in event:
            event["ts"] = (event["ts"] - start) / _NS_PER_US
        if "dur" in event:
            event["dur"] /= _NS_PER_US
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(run["machine"])}


def _scenario(scenario: Document, number: int) -> Iterator[Event]:
    """Yield the name of a scenario, its traffic, the stops at gates, and what was found in it."""
    yield _name("process_name", f"{scenario['name']} ({scenario['outcome']})", number)
    yield _name("thread_name", "traffic", number, TRAFFIC)
    for count, phase in enumerate(scenario["traffic"], 1):
        sent = sum(flow["sent"] for flow in phase["flows"])
        lost = sum(flow["lost"] for flow in phase["flows"])
        yield _piece(
            f"traffic, phase {count}", number, TRAFFIC, phase, "started_ns", "stopped_ns", sent=sent, lost=lost
        )
        for pause in phase["starved"]:
            yield _piece("no CPU", number, TRAFFIC, pause)
    # Runs of earlier versions have none.
    for gate in scenario.get("gates", ()):
        yield _piece(f"gate {gate['what']}", number, gate["tid"], gate) | {"cat": "gate"}
    for finding in scenario["findings"]:
        for at in finding["at_ns"]:
            where = {"pid": number, "tid": TRAFFIC, "ts": at}
            yield {"name": finding["what"], "ph": "i", "s": "p", "cat": "finding", **where}


def _reload(reload: Document, number: int) -> Iterator[Event]:
    """Yield a reload, its steps, what other threads did for them, and the rollback of one that failed."""
    spans: Sequence[Document] = reload["spans"]
    rollback = reload.get("rollback")
    works = [span["work"] for span in spans] + ([rollback] if rollback else [])
    if not works:
        return
    whole = {"start_ns": works[0]["start_ns"], "end_ns": works[-1]["end_ns"]}
    values = {name: reload[name] for name in ("generation", "migrated", "warnings", "error") if name in reload}
    event = _piece(f"reload of {reload['subject']}", number, works[0]["tid"], whole, **values)
    yield event | {"cat": "failed"} if "error" in reload else event
    for span in spans:
        name = f"{span['step']} {span['target']}"
        yield _piece(name, number, span["work"]["tid"], span["work"])
        for helper in span["helpers"]:
            yield _piece(name, number, helper["tid"], helper)
    if rollback:
        yield _piece("rollback", number, rollback["tid"], rollback) | {"cat": "failed"}


def _parallel(row: Document, number: int) -> Iterator[Event]:
    """Yield the parallel reloads of a number of workers, each on the thread that did it."""
    workers = row["workers"]
    yield _name("process_name", f"parallel reloads, {plural(workers, 'worker')}", number)
    for count, done in enumerate(row["rounds"], 1):
        for reload in done["reloads"]:
            yield _piece(f"reload of {reload['subject']}", number, reload["tid"], reload, round=count)


def _name(kind: str, name: str, number: int, thread: int = TRAFFIC) -> Event:
    return {"name": kind, "ph": "M", "pid": number, "tid": thread, "args": {"name": name}}


def _piece(
    name: str, number: int, thread: int, work: Document, start: str = "start_ns", end: str = "end_ns", **values: object
) -> Event:
    """Return a piece of work of a thread, as its times say."""
    times = {"ts": work[start], "dur": work[end] - work[start]}
    return {"name": name, "ph": "X", "pid": number, "tid": thread, **times, "args": values}
