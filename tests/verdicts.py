"""Scenarios in tests beside which others are busy: their traffic may get no CPU, and then nothing was found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_TRIES = 3


def with_verdict(run: Callable[[], _T], said: Callable[[_T], str]) -> _T:
    """Return the result of `run`, which is called again, twice at most, while it `said` that there is no verdict."""
    result = run()
    for _ in range(_TRIES - 1):
        if "no verdict: " not in said(result):
            break
        result = run()
    return result
