"""Invariant 9: what is loaded and reached by nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lab.agent.agent import Agent
from lab.watch.checks.text import some
from lab.watch.snapshot import take
from lab.watch.violation import Violation

UNLOAD_SECONDS = 5.0
"""Seconds in which the kernel frees the programs that a reload replaced."""


def check_leaks(agent: Agent) -> Iterator[Violation]:
    """Yield the programs that nothing reaches (invariant 9)."""
    yield from (Violation(9, what) for what in _leaks(agent))


def _leaks(agent: Agent) -> Iterator[str]:
    """Yield programs that nothing reaches. The kernel frees programs with a delay: wait for it."""
    deadline = time.monotonic() + UNLOAD_SECONDS
    while extra := (now := take(agent.node)).programs - now.reachable:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if extra:
        yield f"{len(extra)} programs are loaded that nothing reaches: {some(extra)}"
