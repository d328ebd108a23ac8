"""What became worse over commits: the steps in the series of a history, each with the commits between which it is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from lab.results.compare import ALARM, Verdict, least_change
from lab.results.deciding import deciding, reasons
from lab.results.history import Lineage, Track
from lab.results.result import Better
from lab.results.statistics import Interval
from lab.results.steps import fewest, find_steps


@dataclass(frozen=True, slots=True)
class Finding:
    """A step of a metric between two commits that were measured one after the other.

    It is before value number `at` of the metric. `change` is a share: 0.03 is 3 % more; its bounds are the value itself
    where the metric is exact. `p` is None then. `recent` tells whether it is within the commits that were asked for.
    """

    metric: str
    at: int
    old: str
    new: str
    change: Interval
    p: float | None
    verdict: Verdict
    recent: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """A lineage and what was found in it. `unknown` says by metric why nothing can be said."""

    lineage: Lineage
    metrics: int
    findings: tuple[Finding, ...]
    unknown: dict[str, str]

    @property
    def regressions(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.verdict is Verdict.WORSE and found.recent)

    @property
    def unsaid(self) -> str:
        """Why nothing can be said of the lineage, empty if something can: that is, of every metric that decides.

        Those of the newest result do. Where nothing in it was measured, one exact metric is enough.
        """
        measured = _timed(self.lineage)
        bench = self.lineage.entries[-1].result.bench
        decide = {name: why for name, why in self.unknown.items() if name in deciding(bench, measured)}
        return reasons(decide if measured or len(self.unknown) < self.metrics else self.unknown)


def check(lineage: Lineage, threshold: float, recent: Collection[tuple[str, ...]] | None = None) -> Checked:
    """Look for steps in all metrics of a lineage.

    `threshold` is the smallest change that counts. Of series without steps at most the share ALARM has any finding, all
    metrics together. `recent` are the identities of the commits at which a step is recent; None: at all of them.
    """
    tracks, identities = lineage.tracks(), lineage.identities
    level = ALARM / max(sum(not track.exact for track in tracks), 1)
    unknown = {track.name: why for track in tracks if (why := _why_not(track, level))}
    # They have no track, but decide as if they had one.
    tracked = {track.name for track in tracks}
    noisy = {name: "too noisy in every result" for name in _timed(lineage) if name not in tracked}
    findings = tuple(
        Finding(
            *(track.name, at, track.commits[at - 1], track.commits[at]),
            *(change, p, verdict, recent is None or identities[track.places[at]] in recent),
        )
        for track in tracks
        if track.name not in unknown
        for at, change, p in (_exact(track) if track.exact else _measured(track, level))
        if (verdict := _verdict(track, change, threshold)) is not None
    )
    return Checked(lineage, len(tracks) + len(noisy), findings, noisy | unknown)


def _timed(lineage: Lineage) -> list[str]:
    """Return the metrics that the newest result has measured, but for exact ones."""
    return [series.name for series in lineage.entries[-1].result.series if series.values and not series.exact]


def _why_not(track: Track, level: float) -> str:
    """Return why nothing can be said of a metric, empty if something can."""
    needed = 2 if track.exact else fewest(level)
    if len(track.values) < needed:
        return f"{len(track.values)} of the {needed} commits that are needed"
    return "" if track.exact or min(track.values) > 0 else "values of 0 have no ratio"


_Steps = Iterator[tuple[int, Interval, float | None]]


def _exact(track: Track) -> _Steps:
    for at in range(1, len(track.values)):
        before, after = track.values[at - 1], track.values[at]
        if before != after:
            change = after / before - 1 if before else math.inf
            yield at, Interval(change, change, change), None


def _measured(track: Track, level: float) -> _Steps:
    for step in find_steps(track.values, level):
        yield step.at, step.change, step.p


def _verdict(track: Track, change: Interval, threshold: float) -> Verdict | None:
    """Return whether a step is worse or better; None if it does not count."""
    if abs(change.middle) < least_change(track.unit, threshold, exact=track.exact):
        return None
    return Verdict.WORSE if (change.middle > 0) is (track.better is Better.LOWER) else Verdict.BETTER
