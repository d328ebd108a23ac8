"""Steps in a series over commits: where its level changed, found with ruptures and tested by permutation.

A series has a step if it can be cut in two so well that fewer of the series in which the same values stand in random
order can be cut as well as that than the level allows. Then both parts are looked at in the same way. So a series in
which chance alone decides which value comes when has a step with the probability of the level, whatever the
distribution of its values, and however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import scipy  # not its parts: scipy.stats takes a second, and is imported when it is used

from datapath.errors import ReloadlabError
from lab.results.statistics import Floats, Interval, unpaired

SHORTEST = 3
"""Values between two steps, at least: what one or two commits show may be an accident."""

_OUTLIER = 2.5
"""Standard deviations from the median from which on a value counts as no farther."""

_CELLS = 1 << 20
"""Values of series in random order that are made at a time."""


class LibraryMissing(ReloadlabError):
    """ruptures is not installed: it does not know every version of Python that we do."""

    def __init__(self) -> None:
        super().__init__("steps are found with the package ruptures, which is not there for this version of Python")


@dataclass(frozen=True, slots=True)
class Step:
    """A step before value number `at`. `change` is a share: 0.03 is 3 % more; `p` is that of the test."""

    at: int
    change: Interval
    p: float


def fewest(level: float) -> int:
    """Return how many values a series needs for a step to be significant at a level."""
    number = 2 * SHORTEST
    # As many orders as this put the larger half first or last.
    while 2 / math.comb(number, number // 2) > level / 10:
        number += 1
    return number


def find_steps(values: Sequence[float], level: float) -> list[Step]:
    """Return the steps in a series of positive values, in their order; `level` is the probability of a false one.

    Raises LibraryMissing.
    """
    if find_spec("ruptures") is None:
        raise LibraryMissing
    logs = np.log(np.asarray(values, dtype=np.float64))
    cuts = sorted(_cuts(logs, 0, len(logs), level))
    found = []
    for number, _ in enumerate(cuts):
        first = cuts[number - 1] if number else 0
        last = cuts[number + 1] if number + 1 < len(cuts) else len(logs)
        # The steps beside it were not known when it was found: now its place can be told better.
        part = logs[first:last]
        at = _cut(part)
        cuts[number] = first + at
        change = unpaired(values[first : first + at], values[first + at : last]).change
        found.append(Step(cuts[number], change, _p(_levelled(part), level)))
    return found


def _cuts(logs: Floats, first: int, last: int, level: float) -> Iterator[int]:
    if last - first < 2 * SHORTEST:
        return
    part = _levelled(logs[first:last])
    if _p(part, level) >= level:
        return
    at = first + _cut(logs[first:last])
    yield at
    yield from _cuts(logs, first, at, level)
    yield from _cuts(logs, at, last, level)


def _cut(part: Floats) -> int:
    """Return the best place to cut a series in two, that of the least absolute deviations: outliers do not move it."""
    from ruptures import Binseg

    search = Binseg(model="l1", min_size=SHORTEST, jump=1).fit(part.reshape(-1, 1))
    return int(search.predict(n_bkps=1)[0])


def _p(part: Floats, level: float) -> float:
    """Return the share of orders of the same values that can be cut as well; at or above `level` a rough one."""
    gain, orders = float(_gains(part.reshape(1, -1))[0]), math.ceil(10 / level)
    if gain <= 0:
        return 1.0
    # Always the same ones: who asks again gets the same answer.
    noise, as_good, made = np.random.default_rng(1), 0, 0
    while made < orders and as_good < level * (orders + 1):
        rows = min(max(_CELLS // len(part), 1), orders - made)
        mixed = noise.permuted(np.broadcast_to(part, (rows, len(part))), axis=1)
        as_good += int(np.count_nonzero(_gains(mixed) >= gain * (1 - 1e-9)))
        made += rows
    return (1 + as_good) / (1 + made)


def _gains(rows: Floats) -> Floats:
    """Return by how much the best cut of each row makes the sum of its squares smaller."""
    number = rows.shape[1]
    sizes = np.arange(SHORTEST, number - SHORTEST + 1)
    sums = np.cumsum(rows - rows.mean(axis=1, keepdims=True), axis=1)[:, sizes - 1]
    best: Floats = (sums**2 * number / (sizes * (number - sizes))).max(axis=1)
    return best


def _levelled(part: Floats) -> Floats:
    """Return a series in which no value is far from the median; the order of the values plays no part in it."""
    ordered, third = np.sort(part), len(part) // 3 + 1
    # The third that lies closest together is of one level, also if a step is in the middle.
    closest = float((ordered[third - 1 :] - ordered[: len(part) - third + 1]).min())
    most = _OUTLIER * closest / (2 * float(scipy.stats.norm.ppf(2 / 3)))
    middle = float(np.median(ordered))
    clipped: Floats = np.clip(part, middle - most, middle + most) if most else part
    return clipped
