"""The statistics behind a comparison: all are of ranks, none supposes a distribution of the times.

Medians have the interval of their order statistics. A difference is a ratio: it is estimated by the median of all
ratios between two samples (Hodges and Lehmann), or of the means of all pairs of the rounds' ratios, on a logarithmic
scale. Its interval consists of the ratios that the test of the same samples would not reject (Mann-Whitney, or
Wilcoxon's signed ranks), so that test and interval do not contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # not its parts: scipy.stats takes a second, and is imported when it is used
from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST = 6
"""Values from which on there is an interval of 95 %."""

WARM = 0.01
"""The chance at which rounds that are no warm-up may be taken for one."""

_MANY = 2000
"""Values of a sample that enter an interval: of more, as many order statistics as this, evenly spread."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, with the bounds of its interval of 95 %."""

    middle: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Difference:
    """The change from one sample to another: 0.03 is 3 % more. `p` is that of the test, not corrected.

    `effect` is between -1 (all values, or all rounds, are lower) and 1: Cliff's delta, or the matched-pairs
    rank-biserial correlation where the samples are `paired`.
    """

    change: Interval
    p: float
    effect: float
    paired: bool


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the median and its interval; None below FEWEST values."""
    if len(values) < FEWEST:
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    # The smallest k of which P(X <= k) exceeds 2.5 %: fewer than k values below the median have less than that.
    rank = int(scipy.stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    return Interval(float(np.median(ordered)), float(ordered[rank - 1]), float(ordered[len(ordered) - rank]))


def unpaired(old: Sequence[float], new: Sequence[float]) -> Difference:
    """Compare two independent samples of positive values, FEWEST or more each."""
    before, after = np.log(np.asarray(old, dtype=np.float64)), np.log(np.asarray(new, dtype=np.float64))
    n, m = len(before), len(after)
    test = scipy.stats.mannwhitneyu(after, before, alternative="two-sided")
    shifts = np.subtract.outer(_spread(after), _spread(before)).ravel()
    bound = n * m / 2 - _z() * math.sqrt(n * m * (n + m + 1) / 12)
    p = 1.0 if math.isnan(test.pvalue) else float(test.pvalue)
    return Difference(_change(shifts, bound / (n * m)), p, float(2 * test.statistic / (n * m) - 1), False)


def paired(old: Sequence[float], new: Sequence[float]) -> Difference:
    """Compare samples of positive values of which those with the same number are of one round; FEWEST or more."""
    ratios = np.log(np.asarray(new, dtype=np.float64)) - np.log(np.asarray(old, dtype=np.float64))
    n, total = len(ratios), len(ratios) * (len(ratios) + 1) / 2
    thinned = _spread(ratios)
    means = (np.add.outer(thinned, thinned) / 2)[np.triu_indices(len(thinned))]
    bound = total / 2 - _z() * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    return Difference(_change(means, bound / total), _signed_rank(ratios), _biserial(ratios), True)


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, so that all of them together keep the rate of false alarms."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[at] * (len(values) - rank)))
        corrected[at] = largest
    return corrected


def block_medians(values: Sequence[float], block: int) -> list[float]:
    """Return the median of each `block` values in a row."""
    if block == 1:
        return list(values)
    return [float(np.median(values[at : at + block])) for at in range(0, len(values), block)]


def warm_up(rounds: Sequence[Sequence[float]]) -> int:
    """Return how many rounds to drop so that the mean of the rest has the smallest error (MSER): at most a quarter.

    None unless they differ from the rest (Mann-Whitney, WARM): else noise passes for a warm-up, in half of all runs.
    What is looked at is the mean over all series of a round, on a logarithmic scale: it says nothing about their
    differences, which the choice would otherwise distort.
    """
    means = np.mean(np.log(np.asarray(rounds, dtype=np.float64)), axis=0)
    rest = [float(np.var(means[first:])) / (len(means) - first) for first in range(len(means) // 4 + 1)]
    first = int(np.argmin(rest))
    return first if first and scipy.stats.mannwhitneyu(means[:first], means[first:]).pvalue < WARM else 0


def _z() -> float:
    return float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))


def _spread(values: Floats) -> Floats:
    """Return the values in order; of very many, some that are spread evenly."""
    ordered = np.sort(values)
    if len(ordered) <= _MANY:
        return ordered
    picked: Floats = ordered[np.linspace(0, len(ordered) - 1, _MANY).round().astype(int)]
    return picked


def _change(shifts: Floats, share: float) -> Interval:
    """Return median and bounds of logarithmic shifts as changes; `share` of the shifts lie beyond each bound."""
    shifts.sort()
    # The bound is the C-th smallest of all shifts, C = floor(share * number).
    rank = max(math.floor(share * len(shifts) + 1e-9), 1)
    cuts = float(np.median(shifts)), float(shifts[rank - 1]), float(shifts[len(shifts) - rank])
    return Interval(*(math.expm1(cut) for cut in cuts))


def _signed_rank(ratios: Floats) -> float:
    # Of equal samples there is nothing to rank.
    return float(scipy.stats.wilcoxon(ratios).pvalue) if np.any(ratios) else 1.0


def _biserial(ratios: Floats) -> float:
    moved = ratios[ratios != 0]
    if not len(moved):
        return 0.0
    ranks = scipy.stats.rankdata(np.abs(moved))
    return float((ranks[moved > 0].sum() - ranks[moved < 0].sum()) / ranks.sum())
