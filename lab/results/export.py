"""Results in the forms of other tools: pyperf's JSON, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from lab.results.result import Better, Result, Series

PYPERF = "1.0"
"""Version of pyperf's format; pyperf reads every one of the same major number."""

_PYPERF_UNITS = {"s": "second", "bytes": "byte"}


def to_pyperf(result: Result, side: str) -> str:
    """Return a suite for `python -m pyperf`: a benchmark for each series of a side, a run for each of its rounds.

    pyperf takes the lower values for the better ones and refuses 0: a rate is turned into the time of one.
    """
    benchmarks = [_benchmark(series, result) for series in result.of_side(side).values() if any(series.values)]
    machine = result.machine
    metadata = {
        "cpu_model_name": machine.cpu_model,
        "cpu_count": machine.cpus,
        "platform": f"{machine.kernel} {machine.architecture}",
        "python_version": machine.python,
        "reloadlab_version": result.version,
    }
    known = {name: value for name, value in metadata.items() if value}
    return json.dumps({"version": PYPERF, "metadata": known, "benchmarks": benchmarks}) + "\n"


def _benchmark(series: Series, result: Result) -> dict[str, Any]:
    rate = series.better is Better.HIGHER
    name = f"{series.name}, time of one ({series.unit})" if rate else series.name
    unit = "second" if rate else _PYPERF_UNITS.get(series.unit, "integer")
    values = [1 / value if rate else value for value in series.values if value > 0]
    first = _warm_up(series, result)
    when = {"date": datetime.fromisoformat(result.started).strftime("%Y-%m-%d %H:%M:%S"), "duration": result.seconds}
    runs: list[dict[str, Any]] = [{"values": [value], "metadata": when} for value in values[first:]]
    if first and runs:
        runs[0]["warmups"] = [[1, value] for value in values[:first]]
    return {"metadata": {"name": name, "unit": unit, "loops": 1}, "runs": runs}


def to_lines(result: Result) -> str:
    """Return a line for each value, which says by itself where it comes from: for a database."""
    return "".join(json.dumps(line) + "\n" for line in _lines(result))


def _lines(result: Result) -> Iterator[dict[str, Any]]:
    machine = result.machine
    common = {
        "bench": result.bench,
        "started": result.started,
        "version": result.version,
        "cpu_model": machine.cpu_model,
        "kernel": machine.kernel,
        "clang": machine.clang,
        "others": result.load.others,
    }
    for series in result.series:
        for number, value in enumerate(series.values):
            yield common | dict(_line(series, number, value, result))


def _line(series: Series, number: int, value: float, result: Result) -> Iterable[tuple[str, Any]]:
    yield "side", series.side
    yield "subject", result.subjects.get(series.side, {})
    yield "metric", series.name
    yield "unit", series.unit
    yield "better", str(series.better)
    yield "exact", series.exact
    yield "round", number // series.block
    yield "position", series.positions[number] if series.positions else None
    yield "warm_up", number < _warm_up(series, result)
    yield "value", value


def _warm_up(series: Series, result: Result) -> int:
    """Return how many values of a series belong to the warm-up."""
    return result.course.warm_up * series.block if series.group else 0
