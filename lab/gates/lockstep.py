"""Two processes whose calls are let on in a chosen order, so that what both do meets at chosen calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from lab.gates.call import Call
from lab.gates.supervisor import Decide
from lab.gates.underway import is_busy
from lab.system.pace import slowness

QUIET, FIRST = 0.2, 5.0
"""Seconds without a call, and without the first call, after which a process is taken to wait for the other, for a lock
say: if nothing of it runs then. On an ordinary machine (lab.system.pace)."""

Held = tuple[Call | None, Call | None]
"""The calls of both that are stopped; None for who is under way or has ended."""


class Order(Protocol):
    """Says whose turn it is, while neither has ended."""

    def turn(self, held: Held) -> int:
        """Return whose call is let on next, 0 or 1, though it may not have come yet."""
        ...

    def let_on(self, who: int, call: Call) -> None:
        """Hear of a call that is let on."""
        ...


class InTurns:
    """Each makes one call, then the other one."""

    def __init__(self) -> None:
        self._next = 0

    def turn(self, held: Held) -> int:
        return self._next

    def let_on(self, who: int, call: Call) -> None:
        self._next = 1 - who


class Within:
    """The first comes to a call, where it stays until the second has ended; then it goes on.

    `is_there` tells that a call of the first is that one; `met` is called there, when the second can do no more.
    """

    def __init__(self, is_there: Callable[[Call], bool], met: Callable[[], object]) -> None:
        self._is_there = is_there
        self._met = met
        self._looked_at: Call | None = None
        self._there: Call | None = None
        self._gone_on = False

    @property
    def reached(self) -> bool:
        """Whether the first has come to that call."""
        return self._there is not None

    def turn(self, held: Held) -> int:
        if self._there is None and held[0] is not None and held[0] is not self._looked_at:
            self._looked_at = held[0]
            self._there = held[0] if self._is_there(held[0]) else None
        return 1 if self._there is not None and not self._gone_on else 0

    def let_on(self, who: int, call: Call) -> None:
        if call is self._there:
            self._met()
            self._gone_on = True


class Lockstep:
    """Holds the calls of two processes until it is their turn. Where the one whose turn it is waits, the other goes on.

    `decide(0)` and `decide(1)` decide on their calls, each in a thread of its own; `end` says that one has ended.
    `passed` counts the calls that were let on although it was not their turn, because the other waited.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._changed = threading.Condition()
        self._held: list[Call | None] = [None, None]
        self._ended = [False, False]
        self._went_on = [time.monotonic()] * 2
        # By thread: a process of ours and its loader both make calls.
        self._last: tuple[dict[int, Call], dict[int, Call]] = ({}, {})
        self._quiet, self._first = QUIET * slowness(), FIRST * slowness()
        self.passed = 0

    def decide(self, who: int) -> Decide:
        """Return what decides on the calls of one of them."""
        return lambda call: self._hold(who, call)

    def end(self, who: int) -> None:
        """Note that one of them has ended."""
        with self._changed:
            self._ended[who] = True
            self._changed.notify_all()

    def _hold(self, who: int, call: Call) -> None:
        with self._changed:
            self._held[who] = call
            self._changed.notify_all()
            while self._turn() != who and not self._waits(1 - who):
                self._changed.wait(self._quiet / 4)
            self.passed += self._turn() != who
            self._held[who] = None
            self._last[who][call.thread] = call
            self._order.let_on(who, call)
            self._went_on[who] = time.monotonic()
            self._changed.notify_all()

    def _turn(self) -> int:
        """Return whose turn it is, of those that have not ended."""
        turn = self._order.turn((self._held[0], self._held[1]))
        return 1 - turn if self._ended[turn] else turn

    def _waits(self, who: int) -> bool:
        """Tell whether one of them makes no calls although nothing here stops it, and it has nothing else to do."""
        patience = self._quiet if self._last[who] else self._first
        if self._held[who] is not None or time.monotonic() - self._went_on[who] <= patience:
            return False
        return not any(map(is_busy, self._last[who].values()))
