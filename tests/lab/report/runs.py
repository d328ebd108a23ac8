"""run.json documents for the tests of this room, made by what writes the real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lab.bench.parallel import ParallelReport, Percentiles, WorkerReport
from lab.cli.report import run_json
from lab.results.result import Load
from lab.results.run import RunFacts
from lab.scenario.records import Record
from tests.lab.results.samples import machine

ABOUT = RunFacts(
    "0.1.0",
    "2026-11-30T09:07:25+00:00",
    machine(),
    Load((1.0, 1.0, 1.0)),
    {"library": "/home/me/bpf", "defines": "POLICY_VERDICT_NOTIFY"},
)


def document(
    records: Sequence[Record], parallel: ParallelReport | None = None, *, error: str | None = None
) -> dict[str, Any]:
    """Return the run.json of these scenarios, as it is read from the file."""
    written = run_json(records, parallel, 12.5, complete=error is None, about=ABOUT, error=error)
    return dict(json.loads(json.dumps(written)))


def parallel(*problems: str) -> ParallelReport:
    """Return a measurement that found these problems."""
    row = WorkerReport(2, 8, 52.0, Percentiles(37.43, 49.86, 61.52, 0.88), {})
    return ParallelReport(50, 3, (row,), sent=900, lost=0, problems=problems, failures=(), tracing=None)
