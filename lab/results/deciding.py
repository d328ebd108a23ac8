"""Which metrics decide whether a comparison says anything: those that a measurement is made for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lab.results.result import RUN

RELOAD = "reload"
"""The metric of a whole reload."""

_AB = "ab"
_MADE_FOR = {_AB: RELOAD, "releases": RELOAD, RUN: "reload: pod", "reload": "reload: pipeline, "}
"""By benchmark, how the metrics begin that it is made for. Others, such as the steps of a reload, only explain them."""

_REASONS = 3
"""Metrics that are named with the reason why nothing can be said of them."""


def deciding(bench: str, measured: Collection[str], refused: Collection[str] = ()) -> frozenset[str]:
    """Return those of the metrics that were measured which decide; all of them where none stands for the others.

    Of `bench ab` those that were `refused` decide as well: it measures nothing but what it is asked for.
    """
    prefix = _MADE_FOR.get(bench)
    found = frozenset(name for name in measured if prefix and name.startswith(prefix)) or frozenset(measured)
    return found | frozenset(refused) if bench == _AB else found


def reasons(unknown: Mapping[str, str]) -> str:
    """Return in one line why nothing can be said of some metrics, by name; of the first of them if they are many."""
    named = [f"{name}: {why}" for name, why in unknown.items()]
    more = [f"and {len(named) - _REASONS} more metrics"] if len(named) > _REASONS else []
    return "; ".join(named[:_REASONS] + more)
