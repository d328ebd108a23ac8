"""trace.py: what a run.json holds, as events of a trace."""

from __future__ import annotations

from typing import Any

from lab.report.trace import trace
from tests.lab.report.samples import parallel, record, run

SPAN = {
    "step": "load programs",
    "target": "bpf_lxc.o",
    "duration_ns": 4000,
    "work": {"tid": 7, "start_ns": 12_000, "end_ns": 16_000},
    "helpers": [{"tid": 8, "start_ns": 13_000, "end_ns": 15_000}],
}
COMMIT = {**SPAN, "step": "commit", "target": "pod-1", "helpers": []}
COMMIT["work"] = {"tid": 7, "start_ns": 16_000, "end_ns": 17_500}
RELOAD = {
    "scenario": "a.py::test_one",
    "subject": "pod-1",
    "generation": 9,
    "migrated": ["cilium_metrics"],
    "warnings": [],
    "spans": [SPAN, COMMIT],
}
PHASE = {
    "started_ns": 10_000,
    "stopped_ns": 20_000,
    "starved": [{"start_ns": 18_000, "end_ns": 19_000}],
    "flows": [{"sent": 3, "lost": 1}, {"sent": 4, "lost": 0}],
}
RUN: dict[str, Any] = {
    "machine": {"kernel": "6.1", "cpus": 2},
    "scenarios": [
        {"name": "a.py::test_none", "outcome": "skipped", "traffic": [], "findings": []},
        {
            "name": "a.py::test_one",
            "outcome": "failed",
            "traffic": [PHASE],
            "findings": [{"what": "invariant 7: lost", "at_ns": [14_000, 14_500]}],
        },
    ],
    "reloads": [RELOAD],
    "failed_reloads": [],
    "parallel": None,
}


def test_reloads_steps_and_helpers_stand_on_their_threads() -> None:
    pieces = {(e["name"], e["tid"]): (e["ts"], e["dur"]) for e in trace(RUN)["traceEvents"] if e["ph"] == "X"}
    assert pieces == {
        ("reload of pod-1", 7): (2.0, 5.5),
        ("load programs bpf_lxc.o", 7): (2.0, 4.0),
        ("load programs bpf_lxc.o", 8): (3.0, 2.0),
        ("commit pod-1", 7): (6.0, 1.5),
        ("traffic, phase 1", 0): (0.0, 10.0),
        ("no CPU", 0): (8.0, 1.0),
    }
    (whole,) = (e for e in trace(RUN)["traceEvents"] if e["name"] == "reload of pod-1")
    assert whole["args"] == {"generation": 9, "migrated": ["cilium_metrics"], "warnings": []}
    assert {e["pid"] for e in trace(RUN)["traceEvents"] if e["ph"] == "X"} == {2}


FAILED = {
    "scenario": "a.py::test_one",
    "subject": "host",
    "generation": 10,
    "error": "no space left",
    "rollback": {"tid": 7, "start_ns": 19_000, "end_ns": 19_500},
    "spans": [{**SPAN, "work": {"tid": 7, "start_ns": 17_000, "end_ns": 18_000}, "helpers": []}],
}


def test_a_failed_reload_is_marked_and_its_rollback_is_part_of_it() -> None:
    events = trace({**RUN, "failed_reloads": [FAILED]})["traceEvents"]
    found = {e["name"]: (e["ts"], e["dur"], e.get("cat")) for e in events if e["ph"] == "X" and e["ts"] >= 7}
    assert found["reload of host"] == (7.0, 2.5, "failed")
    assert found["rollback"] == (9.0, 0.5, "failed")
    assert found["load programs bpf_lxc.o"] == (7.0, 1.0, None)
    (whole,) = (e for e in events if e["name"] == "reload of host")
    assert whole["args"] == {"generation": 10, "error": "no space left"}
    after_commit = trace({**RUN, "failed_reloads": [{**FAILED, "rollback": None}]})["traceEvents"]
    assert [(e["ts"], e["dur"]) for e in after_commit if e["name"] == "reload of host"] == [(7.0, 1.0)]
    nothing_begun = trace({**RUN, "failed_reloads": [{**FAILED, "rollback": None, "spans": []}]})["traceEvents"]
    assert [e for e in nothing_begun if e["name"] == "reload of host"] == []


def test_gates_stand_on_the_thread_that_they_stopped() -> None:
    gate = {"what": "before commit pod-1", "tid": 7, "start_ns": 15_000, "end_ns": 16_000}
    scenarios = [RUN["scenarios"][0], {**RUN["scenarios"][1], "gates": [gate]}]
    events = trace({**RUN, "scenarios": scenarios})["traceEvents"]
    found = [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"]) for e in events if e.get("cat") == "gate"]
    assert found == [("gate before commit pod-1", 2, 7, 5.0, 1.0)]


def test_parallel_reloads_stand_on_the_threads_of_their_workers() -> None:
    """Their process comes behind those of the scenarios."""
    content = run(record(), measured=parallel(workers=(1, 2), reloads=3))
    events = trace(content)["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert [names[2], names[3]] == ["parallel reloads, 1 worker", "parallel reloads, 2 workers"]
    rows = content["parallel"]["workers"]
    for pid, row in zip((2, 3), rows, strict=True):
        wanted = [(each["subject"], each["tid"]) for done in row["rounds"] for each in done["reloads"]]
        pieces = [e for e in events if e["ph"] == "X" and e["pid"] == pid]
        assert [(e["name"].removeprefix("reload of "), e["tid"]) for e in pieces] == wanted
        assert {e["args"]["round"] for e in pieces} == {1, 2}


def test_findings_stand_where_they_happened() -> None:
    found = [(e["name"], e["pid"], e["ts"]) for e in trace(RUN)["traceEvents"] if e["ph"] == "i"]
    assert found == [("invariant 7: lost", 2, 4.0), ("invariant 7: lost", 2, 4.5)]


def test_scenarios_are_named_those_without_events_too() -> None:
    names = [e["args"]["name"] for e in trace(RUN)["traceEvents"] if e["name"] == "process_name"]
    assert names == ["a.py::test_none (skipped)", "a.py::test_one (failed)"]
    empty = trace({**RUN, "scenarios": [], "reloads": []})
    assert empty == {"traceEvents": [], "displayTimeUnit": "ms", "otherData": RUN["machine"]}
