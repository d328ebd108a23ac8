"""Results that are made of given values, and noise as machines have it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lab.results.machine import Machine, this_machine
from lab.results.result import Course, Load, Result, Series

NEEDS_RUPTURES = pytest.mark.skipif(find_spec("ruptures") is None, reason="it does not know this version of Python")
"""Of tests that look for steps. The package is not imported for it: with scipy, that takes more than a second."""


@lru_cache(maxsize=1)
def machine() -> Machine:
    return this_machine()


def result(*series: Series, sides: Sequence[str] = ("",), **changes: Any) -> Result:
    """Return a complete result of this machine."""
    made = Result(
        bench="reload",
        version="0.1.0",
        started="2026-01-01T00:00:00+00:00",
        machine=machine(),
        load=Load((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.01),
        options={"pods": "2"},
        subjects={side: {"library": "our sources"} for side in sides},
        course=Course(rounds=20),
        series=series,
        complete=True,
    )
    return replace(made, **changes)


def times(seed: int, *, middle: float = 0.02, rounds: int = 30, noise: float = 0.01) -> tuple[float, ...]:
    """Return times in seconds with 1 % of noise."""
    made = random.Random(seed)
    return tuple(middle * made.lognormvariate(0, noise) for _ in range(rounds))


def lockstep(noise: np.random.Generator, rounds: int, *, slower: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the times of two sides of one run, the second `slower` by that share.

    What both have: a first round twice as long, and a load that comes and goes over many rounds (autocorrelated, 10 %).
    What each has for itself: 2 % of noise, and an interruption of half the time in one round of twenty.
    """
    drift = np.empty(rounds)
    drift[0] = 0.0
    for at in range(1, rounds):
        drift[at] = 0.9 * drift[at - 1] + noise.normal(0, 0.1 * np.sqrt(1 - 0.9**2))
    both = 0.02 * np.exp(drift)
    both[0] *= 2

    def side() -> NDArray[Any]:
        interrupted = 1 + 0.5 * (noise.random(rounds) < 0.05)
        return np.asarray(both * np.exp(noise.normal(0, 0.02, rounds)) * interrupted)

    return side(), side() * (1 + slower)
