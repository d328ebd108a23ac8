"""Runs as `reloadlab run` writes them, made of given reloads and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datapath.base.timing import Interval
from datapath.reload.outcome import Attached, FailedReload, Outcome, Span
from lab.bench.parallel import ParallelReport, WorkerRounds
from lab.scenario.details import failed_reload, phase
from lab.scenario.records import FAILED, PASSED, Record
from lab.traffic.report import Delays, FlowReport, LostPacket, Pause, TrafficReport
from tests.lab.report.runs import document

MS = 1_000_000
START = 5_000 * MS
"""When the first scenario begins, in nanoseconds."""

STEPS = (("compile", "bpf_lxc.c"), ("load programs", "bpf_lxc.o"), ("attach ingress", "lxc1"), ("commit", "pod-1"))
LOST = "invariant 7: pod-1 -> pod-2 udp v4: 3 of 100 packets lost, the first is reply 7"


def outcome(
    subject: str = "pod-1",
    generation: int = 2,
    *,
    start: int = START,
    step: int = MS,
    pause: int = MS,
    ifname: str = "lxc1",
) -> Outcome:
    """Return a reload of STEPS, each of which takes `step`, with a pause after each."""
    spans = []
    for number, (name, target) in enumerate(STEPS):
        begun = start + number * (step + pause)
        spans.append(Span(name, target, Interval(7, begun, begun + step), (Interval(8, begun, begun + step // 2),)))
    attached = (
        Attached(ifname, "ingress", "cil_from_container", 40 + generation),
        Attached(ifname, "egress", "cil_to_container", 90 + generation),
    )
    return Outcome(subject, 101, generation, attached, (), (), tuple(spans))


def failed(generation: int = 3, *, start: int = START + 20 * MS) -> FailedReload:
    """Return a reload that failed in its third step and was undone."""
    done = outcome(generation=generation, start=start)
    rollback = Interval(7, start + 6 * MS, start + 8 * MS)
    return FailedReload("pod-1", 101, generation, done.spans[:3], rollback, "no space left")


def traffic(*, lost: Sequence[int] = (), start: int = START - MS, end: int = START + 40 * MS) -> TrafficReport:
    """Return a phase of one flow, whose packets of these times were lost."""
    packets = tuple(LostPacket(number, at, "reply") for number, at in enumerate(lost))
    flow = FlowReport(
        "pod-1 -> pod-2 udp v4", "udp", 100, 100, 100 - len(packets), 0, packets, delays=Delays(90, 1, 2, 3, 4, start)
    )
    return TrafficReport(start, end, 2 * MS, 3, 4, (Pause(start + 2 * MS, start + 3 * MS),), (flow,))


def record(name: str = "scenarios/test_a.py::test_one", **changes: Any) -> Record:
    """Return a scenario that passed, with one reload."""
    report = traffic()
    values: dict[str, Any] = {
        "outcome": PASSED,
        "seconds": 1.5,
        "reloads": ({"node": 1, **outcome().to_json()},),
        "sent": report.sent,
        "traffic": (phase(report, [3, 0, 4]),),
    }
    return Record(name, **values | changes)


def losing(name: str = "scenarios/test_a.py::test_loses", at: Sequence[int] = ()) -> Record:
    """Return a scenario in which packets were lost: by default two during the third step, one after it."""
    times = tuple(at) or (START + 4 * MS, START + 4 * MS + 500_000, START + 5 * MS + 500_000)
    report = traffic(lost=times)
    return record(
        name,
        outcome=FAILED,
        message=f"invariants violated:\n  {LOST}",
        violations=(LOST,),
        findings=({"what": LOST, "at_ns": list(times)},),
        lost=len(times),
        traffic=(phase(report, [3, 0, 4]),),
        failed_reloads=(failed_reload(1, failed()),),
    )


def parallel(*, workers: Sequence[int] = (1, 2), reloads: int = 6) -> ParallelReport:
    """Return a measurement of parallel reloads, two rounds each."""
    rows = []
    for count in workers:
        rounds = WorkerRounds(count)
        for number in range(2):
            rounds.add(
                [outcome(f"pod-{at}", at, start=(at + 9 * number) * 8 * MS, pause=0) for at in range(reloads)], 0.1
            )
        rows.append(rounds.report())
    return ParallelReport(reloads, 2, tuple(rows), sent=50, lost=0, problems=(), failures=(), tracing="not here")


def run(*records: Record, complete: bool = True, measured: ParallelReport | None = None) -> dict[str, Any]:
    """Return what run.json holds."""
    return document(records, measured, error=None if complete else "interrupted")


def large(spans: int, scenarios: int) -> dict[str, Any]:
    """Return a run with that many steps: one half in its first scenario, the other half evenly in the others."""
    small = run(*(record(f"scenarios/test_large.py::test_{number:03}") for number in range(scenarios)))
    half = spans // 2 // len(STEPS)
    counts = [half, *[half // (scenarios - 1)] * (scenarios - 1)]
    pairs = zip(small["reloads"], counts, strict=True)
    return {**small, "reloads": [{**reload, "generation": at} for reload, count in pairs for at in range(count)]}
