"""The steps of reloads, as values of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from datapath.reload.outcome import Outcome, Span
from lab.loaders.plan import PREPARATIONS
from lab.results.result import Series

Times = Sequence[tuple[Span, int]]
"""The steps of one reload, and the nanoseconds of each that count."""


def seconds_of(outcome: Outcome, *, external: bool) -> float:
    """Return the seconds of a reload; with `external`, without what the lab prepares for whoever loads."""
    work = [span.work for span in outcome.spans if not external or span.step not in PREPARATIONS]
    return (work[-1].end_ns - work[0].start_ns) / 1e9


def by_step(reloads: Iterable[Times]) -> dict[str, tuple[float, ...]]:
    """Return the seconds that each kind of step took in each of the reloads.

    A kind that came twice in one is summed; one that did not come took no time.
    """
    sums: list[dict[str, float]] = []
    for times in reloads:
        one: dict[str, float] = {}
        for span, nanoseconds in times:
            one[span.step] = one.get(span.step, 0.0) + nanoseconds / 1e9
        sums.append(one)
    return {step: tuple(one.get(step, 0.0) for one in sums) for step in dict.fromkeys(s for one in sums for s in one)}


def step_series(prefix: str, steps: Mapping[str, tuple[float, ...]], group: str, *, side: str = "") -> list[Series]:
    """Return a series for each kind of step; all are of the `group`."""
    return [Series(f"{prefix}: {step}", "s", values, side=side, group=group) for step, values in steps.items()]
