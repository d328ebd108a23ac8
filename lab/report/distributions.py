"""Distributions: step times and parallel reloads as box plots with their numbers, parallel reloads as bars in time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.report.figure import PREPARE, SWITCH, Bar, Bars, Figure, Table, ms, number, plain
from lab.system.words import plural

Json = Mapping[str, Any]

POINTS = 400
"""Values that a box shows one by one; of more, those beyond the whiskers alone, and of these as many."""

_DECADES = 3
"""Powers of ten between which an axis has ticks of its own."""

_COLUMNS = ("n", "least", "p25", "median", "p75", "p95", "p99", "most")


@dataclass(frozen=True, slots=True)
class Sample:
    """The values of one box, in one unit, under a name."""

    name: str
    values: Sequence[float]


def box_figure(
    title: str, alt: str, samples: Sequence[Sample], unit: str, *, points: bool = False, folded: bool = False
) -> Figure:
    """Return samples as boxes below each other on a logarithmic axis, and their numbers as a table."""
    shown = [sample for sample in samples if len(sample.values)]
    data = [_box(sample, unit, points=points) for sample in shown]
    layout = {
        "xaxis": {"title": {"text": unit}} | value_axis(shown),
        "yaxis": {"autorange": "reversed", "type": "category"},
        "showlegend": False,
    }
    dots = "every value" if points else "values beyond"
    note = f"Box: the middle half; line: the median; whiskers: up to 1.5 times the box; dots: {dots}."
    table = Table((title, *_COLUMNS), [_row(each) for each in shown], frozenset(range(1, 9)), f"In {unit}")
    return Figure(title, alt, {"data": data, "layout": layout}, (table,), 90 + 30 * len(shown), note, folded)


def value_axis(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return a logarithmic axis if all values are above 0, else nothing, which is a linear one."""
    return _logarithmic(samples) if _positive(samples) else {}


def _logarithmic(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return a logarithmic axis with ticks at 1, 2 and 5, or at powers of ten if there are many of these."""
    low, high = min(min(each.values) for each in samples), max(max(each.values) for each in samples)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= _DECADES else (1,)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _positive(samples: Iterable[Sample]) -> bool:
    return all(min(sample.values) > 0 for sample in samples)


def _box(sample: Sample, unit: str, *, points: bool) -> dict[str, Any]:
    """Return a box of plotly: with its values if they are few, else by its cuts and the values beyond the whiskers."""
    name = plain(sample.name)
    common = {"type": "box", "orientation": "h", "name": name, "marker": {"color": "--s1", "size": 4}}
    common |= {"line": {"width": 1.5}, "hoverinfo": "x+name"}
    if len(sample.values) <= POINTS:
        shown = "all" if points else "outliers"
        return common | {"x": list(sample.values), "y": [name] * len(sample.values), "boxpoints": shown, "jitter": 0.5}
    ordered = np.sort(np.asarray(sample.values, dtype=np.float64))
    low, middle, high = (float(cut) for cut in np.percentile(ordered, (25, 50, 75)))
    reach = 1.5 * (high - low)
    inside = ordered[(ordered >= low - reach) & (ordered <= high + reach)]
    beyond = ordered[(ordered < low - reach) | (ordered > high + reach)]
    picked = beyond[np.linspace(0, len(beyond) - 1, min(len(beyond), POINTS)).round().astype(int)]
    cuts = {"q1": [low], "median": [middle], "q3": [high]}
    fences = {"lowerfence": [float(inside[0])], "upperfence": [float(inside[-1])]}
    return common | cuts | fences | {"y": [name], "x": [[float(value) for value in picked]], "boxpoints": "all"}


def _row(sample: Sample) -> tuple[str, ...]:
    cuts = np.percentile(np.asarray(sample.values, dtype=np.float64), (0, 25, 50, 75, 95, 99, 100))
    return sample.name, f"{len(sample.values):,}", *(number(float(cut)) for cut in cuts)


def step_figure(run: Json) -> Figure | None:
    """Return the times of every step of the reloads of all scenarios; None without reloads."""
    values: dict[str, list[float]] = defaultdict(list)
    for reload in run["reloads"]:
        for span in reload["spans"]:
            values[span["step"]].append((span["work"]["end_ns"] - span["work"]["start_ns"]) / 1e6)
    if not values:
        return None
    samples = [Sample(step, [round(each, 4) for each in found]) for step, found in values.items()]
    slowest = max(samples, key=lambda sample: float(np.median(sample.values)))
    total = sum(len(sample.values) for sample in samples)
    kinds = plural(len(samples), "kind")
    alt = f"Box plots of {plural(total, 'step')} of {kinds}; {slowest.name} has the highest median."
    return box_figure("Step times in scenarios", alt, samples, "milliseconds")


def parallel_figures(parallel: Json) -> list[Figure]:
    """Return the figures of parallel reloads: whole reloads, then by number of workers waterfalls and steps."""
    rows = parallel["workers"]
    whole = [Sample(_workers(row), row["reload"]["values_ms"]) for row in rows if row["reload"] is not None]
    if not whole:
        return []
    medians = ", ".join(f"{sample.name}: {number(float(np.median(sample.values)))} ms" for sample in whole)
    alt = f"How long reloads took. Medians: {medians}."
    figures = [box_figure("Whole reloads", alt, whole, "milliseconds", points=True)]
    figures += [figure for row in rows if (figure := _waterfall(row)) is not None]
    figures += [_steps(row) for row in rows if row["steps"]]
    return figures


def _workers(row: Json) -> str:
    return plural(row["workers"], "worker")


def _waterfall(row: Json) -> Figure | None:
    """Return the reloads of one round, that of the middle rate, a row for each worker process."""
    rounds = [each for each in row["rounds"] if each["reloads"]]
    rounds.sort(key=lambda each: float(each["reloads_per_second"]))
    if not rounds:
        return None
    shown = rounds[(len(rounds) - 1) // 2]
    turns = sorted(shown["reloads"], key=lambda turn: int(turn["start_ns"]))
    origin, last = turns[0]["start_ns"], max(turn["end_ns"] for turn in turns)
    lanes: dict[int, list[Json]] = defaultdict(list)
    for turn in turns:
        lanes[turn["tid"]].append(turn)
    bars = [
        Bar(
            row,
            ms(turn["start_ns"], origin),
            ms(turn["end_ns"] - turn["start_ns"]),
            (PREPARE, SWITCH)[place % 2],
            f"{turn['subject']}: {(turn['end_ns'] - turn['start_ns']) / 1e6:.2f} ms",
        )
        for row, lane in enumerate(lanes.values())
        for place, turn in enumerate(lane)
    ]
    names = [f"worker {place}" for place in range(1, len(lanes) + 1)]
    content = Bars(names, "ms since the round began", bars)
    title = f"One round of {_workers(row)}"
    alt = (
        f"{plural(len(turns), 'reload')} by {_workers(row)} within {number((last - origin) / 1e6)} ms: the round of "
        f"the middle rate, {number(shown['reloads_per_second'])} reloads/s. Light and dark only tell neighbours apart."
    )
    return Figure(title, alt, content.to_json(), height=90 + 28 * len(lanes))


def _steps(row: Json) -> Figure:
    samples = [Sample(step, times["values_ms"]) for step, times in row["steps"].items()]
    title = f"Steps with {_workers(row)}"
    alt = f"Box plots of the times of {plural(len(samples), 'step')} with {_workers(row)}."
    return box_figure(title, alt, samples, "milliseconds", folded=True)


def rates_table(parallel: Json) -> Table:
    """Return rate, percentiles and the kernel's share by number of workers."""
    columns = ("workers", "reloads", "reloads/s", "each round", "p50 ms", "p95 ms", "p99 ms", "in the kernel")
    rows = []
    for row in parallel["workers"]:
        whole = row["reload"]
        cuts = ["-"] * 3 if whole is None else [number(whole[cut]) for cut in ("p50", "p95", "p99")]
        share = None if whole is None else whole.get("kernel_share")
        known = f"{share:.0%}" if isinstance(share, float | int) and math.isfinite(share) else "-"
        rounds = ", ".join(number(each["reloads_per_second"]) for each in row["rounds"]) or "-"
        rate = number(row["reloads_per_second"])
        rows.append((str(row["workers"]), f"{row['reloads']:,}", rate, rounds, *cuts, known))
    return Table(columns, rows, frozenset(range(8)), "Parallel reloads by number of workers")
