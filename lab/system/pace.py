"""How slow this machine is: one factor for what scenarios wait for and how fast they send.

The fixed times of scenarios are those of an ordinary machine. An emulated one takes ten times as long for everything,
and would miss them without anything being wrong. The factor is found once, by the command that runs the suites, and
processes that it starts inherit it.
"""

from __future__ import annotations

import os
import time

from datapath.errors import WrongCall

SLOWNESS_VARIABLE = "RELOADLAB_SLOWNESS"
"""Environment variable that holds the factor; whoever sets it decides, and nothing is measured."""

ORDINARY = 0.010
"""Seconds of processor time that an ordinary machine takes for one piece of work, at most."""

THRESHOLD = 3.0
"""A machine that is slower by less than this is an ordinary one: its results are not to depend on the moment."""

LARGEST = 50.0
"""No machine counts as slower than this."""

_PIECES, _STEPS = 9, 150_000


class BadSlowness(WrongCall):
    """A factor that is none."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{SLOWNESS_VARIABLE} is {text!r}, not a number from 1 to {LARGEST:g}")


def slowness() -> float:
    """Return by how much what is waited for takes longer here than on an ordinary machine: 1 if nobody measured it."""
    text = os.environ.get(SLOWNESS_VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        raise BadSlowness(text) from None
    if not 1 <= factor <= LARGEST:
        raise BadSlowness(text)
    return factor


def calibrate() -> float:
    """Find the factor, unless it is given, and let this process and those that it starts have it."""
    if SLOWNESS_VARIABLE not in os.environ:
        os.environ[SLOWNESS_VARIABLE] = f"{factor_of([_piece() for _ in range(_PIECES)]):g}"
    return slowness()


def factor_of(seconds: list[float]) -> float:
    """Return the factor of a machine that took so long for pieces of work."""
    # Every command has this module, and few measure.
    from statistics import median

    factor = median(seconds) / ORDINARY
    return min(float(round(factor)), LARGEST) if factor >= THRESHOLD else 1.0


def _piece() -> float:
    # Processor time: others that are busy make a machine no slower than it is.
    begin = time.thread_time()
    total = 0
    for step in range(_STEPS):
        total += step
    return time.thread_time() - begin
