"""Connections that ended: each case begins some eighty, and every look at a node reads all that are in its tables."""

from __future__ import annotations

import time
from pathlib import Path

from lab.agent import collector


class EndedConnections:
    """Forgets, between cases, the connections that ended before the last one. Those that there are now stay."""

    def __init__(self, pins: Path) -> None:
        self._pins = pins
        self._keep = collector.keys(pins)
        self._last = time.monotonic()

    def forget(self) -> None:
        """Delete those whose time is over, and those that were silent since this was called last: none is in use."""
        now = time.monotonic()
        collector.collect(self._pins)
        collector.forget_silent(self._pins, now - self._last, keep=self._keep)
        self._last = now
