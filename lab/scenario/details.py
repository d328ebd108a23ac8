"""What a scenario did, as the fields of its record (lab.scenario.records)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datapath.base.shallow import shallow
from datapath.reload.outcome import FailedReload, Outcome, spans_json
from lab.scenario.records import ERROR
from lab.scenario.verdict import NoVerdict
from lab.scenario.watched import Watched
from lab.traffic.report import FlowReport, TrafficReport


def details(scenarios: Sequence[Watched], error: BaseException | None = None) -> dict[str, Any]:
    """Return the fields of a test's record that come from its scenarios, all of them together, as JSON values.

    `error` is what has ended the test: without a verdict it has not failed, but is an error.
    """
    phases = [report for running in scenarios for report in running.phases]
    steps = [running.coverage for running in scenarios]
    seen_kinds = {kind for each in steps for kind in each.seen_kinds}
    found: dict[str, Any] = {
        "violations": [str(violation) for running in scenarios for violation in running.findings],
        "reloads": [
            succeeded_reload(node, outcome, running.entered(node, outcome.generation))
            for running in scenarios
            for node, outcome in running.outcomes_by_node
        ],
        "failed_reloads": [
            failed_reload(node, reload) for running in scenarios for node, reload in running.failures_by_node
        ],
        "sent": sum(report.sent for report in phases),
        "lost": sum(report.lost for report in phases),
        "denied": sum(sum(report.denied.values()) for report in phases),
        "starved_ns": sum(report.starved_ns for report in phases),
        "starved_part": round(max((running.starved_part for running in scenarios), default=0.0), 3),
        "steps": {
            "seen": sum(each.seen for each in steps),
            "unseen": sum(each.unseen for each in steps),
            "seen_kinds": sorted(seen_kinds),
            "unseen_kinds": sorted({kind for each in steps for kind in each.unseen_kinds} - seen_kinds),
        },
        "gaps": list(dict.fromkeys(gap for running in scenarios for gap in running.gaps)),
        "traffic": [phase(report, running.sent_in_parts(report)) for running in scenarios for report in running.phases],
        "gates": [
            {"what": stop.where, **asdict(stop.work)}
            for running in scenarios
            for gate in running.gates
            for stop in gate.stops
        ],
        "nodes": [node for running in scenarios for node in running.shapes],
        "findings": [
            {"what": str(found), "at_ns": list(found.at)}
            for running in scenarios
            for found in running.findings
            if found.at
        ],
    }
    return found | ({"outcome": ERROR} if isinstance(error, NoVerdict) else {})


def phase(report: TrafficReport, parts: Sequence[int]) -> dict[str, Any]:
    """Return the report of one phase of traffic as JSON values; `parts`: how often was sent in equal parts of it."""
    values = ("started_ns", "stopped_ns", "longest_pause_ns", "late_after_ns", "cpu_ns")
    return {
        **{name: getattr(report, name) for name in values},
        "starved": [shallow(pause) for pause in report.starved],
        "sent_in_parts": list(parts),
        "flows": [_flow(flow) for flow in report.flows],
    }


def succeeded_reload(node: int, outcome: Outcome, packets: Mapping[str, int] | None) -> dict[str, Any]:
    """Return a reload on the node of that number as JSON values, with the packets that entered its programs."""
    return {"node": node, **outcome.to_json(), "packets": None if packets is None else dict(packets)}


def failed_reload(node: int, reload: FailedReload) -> dict[str, Any]:
    """Return a reload that failed on the node of that number as JSON values."""
    values = {name: getattr(reload, name) for name in ("subject", "endpoint_id", "generation", "error")}
    rollback = None if reload.rollback is None else shallow(reload.rollback)
    return {"node": node, **values, "rollback": rollback, "spans": spans_json(reload.spans)}


def _flow(flow: FlowReport) -> dict[str, Any]:
    """Return a flow's account; what happened to it is counted by its kind."""
    connections = flow.connections
    return {
        "name": flow.name,
        "protocol": flow.protocol,
        "denied": flow.denied,
        "sent": flow.sent,
        "lost": len(flow.lost),
        "events": dict(Counter(event.kind for event in flow.events)),
        "delays": shallow(flow.delays),
        "connections": None if connections is None else shallow(connections),
    }
