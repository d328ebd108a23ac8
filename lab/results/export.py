"""Results in the forms of other tools: pyperf, Bencher, github-action-benchmark, and JSON lines for a database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from statistics import median
from typing import Any

from lab.results.compare import counted
from lab.results.result import Better, Result, Series
from lab.results.statistics import Interval, median_interval

PYPERF = "1.0"
"""Version of pyperf's format; pyperf reads every one of the same major number."""

_PYPERF_UNITS = {"s": "second", "bytes": "byte"}


def to_pyperf(result: Result, side: str) -> str:
    """Return a suite for `python -m pyperf`: a benchmark for each series of a side, a run for each of its rounds.

    pyperf takes the lower values for the better ones and refuses 0: a rate is turned into the time of one.
    """
    found = (_benchmark(series, result) for series in result.of_side(side).values())
    benchmarks = [benchmark for benchmark in found if benchmark["runs"]]
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
    first = _warm_up(series, result)
    rounds = [series.values[at : at + series.block] for at in range(first, len(series.values), series.block)]
    warm_up, *kept = (
        [1 / value if rate else value for value in part if value > 0] for part in (series.values[:first], *rounds)
    )
    date = datetime.fromisoformat(result.started).strftime("%Y-%m-%d %H:%M:%S")
    runs: list[dict[str, Any]] = [
        {"values": values, "metadata": {"date": date, "duration": 0}} for values in kept if values
    ]
    if runs:
        # pyperf adds up those of all runs.
        runs[0]["metadata"]["duration"] = result.seconds
        if warm_up:
            runs[0]["warmups"] = [[1, value] for value in warm_up]
    return {"metadata": {"name": name, "unit": unit, "loops": 1}, "runs": runs}


def to_bencher(result: Result, side: str) -> str:
    """Return Bencher Metric Format: a benchmark for each series of a side, of one measure: median and interval.

    Times are of the measure `latency` in nanoseconds and rates of `throughput`, as Bencher has them; others are of a
    measure that is called like their unit.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for series, middle in _medians(result, side):
        metric = {"value": middle.middle}
        if middle.low < middle.high:
            metric |= {"lower_value": middle.low, "upper_value": middle.high}
        found[series.name] = {_measure(series): metric}
    return json.dumps(found, indent=1) + "\n"


def to_github(result: Result, side: str, better: Better) -> str:
    """Return a list for github-action-benchmark, whose files hold metrics of one direction: the medians of a side."""
    found = [
        {
            "name": series.name,
            "unit": "ns" if series.unit == "s" else series.unit,
            "value": middle.middle,
            "range": f"{middle.low:.6g} to {middle.high:.6g}",
            "extra": f"{len(counted(series, result))} rounds, kernel {result.machine.kernel}",
        }
        for series, middle in _medians(result, side)
        if series.better is better
    ]
    return json.dumps(found, indent=1) + "\n"


def _medians(result: Result, side: str) -> Iterator[tuple[Series, Interval]]:
    """Yield the series of a side that have values, each with its median and the interval, times in nanoseconds.

    The bounds are the median itself if there are too few values for an interval.
    """
    for series in result.of_side(side).values():
        if values := [value * (1e9 if series.unit == "s" else 1) for value in counted(series, result)]:
            middle = median(values)
            yield series, median_interval(values) or Interval(middle, middle, middle)


def _measure(series: Series) -> str:
    if series.unit == "s":
        return "latency"
    return "throughput" if series.unit.endswith("/s") else series.unit


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
