"""The course of one fault's trial over several processes: what is known so far, and what the next process runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from lab.corpus.fault import Fault
from lab.corpus.verdict import Catch, Trial

TRIES, NEEDED = 3, 2
"""How often a scenario that failed is run with the same fault at most, and how often it must fail to have caught it."""

FIRST = ("test_hitless", "test_host.py", "test_rollback", "switched", "test_pods", "test_two_nodes")
"""Scenarios that find much in little time: run before those that no hint of the fault names."""


def ordered(fault: Fault, items: Iterable[pytest.Item]) -> list[str]:
    """Return the scenarios to run: first those that the fault's hints name, in the order of the hints."""
    hints = (*fault.only, *FIRST)

    def rank(item: pytest.Item) -> int:
        return next((number for number, hint in enumerate(hints) if hint in item.nodeid), len(hints))

    return [item.nodeid for item in sorted(items, key=rank)]


class Course:
    """The trial of `fault` (None: no fault, the control) on these scenarios, in their order.

    `needed` is how often a scenario must fail to have caught the fault; the control's first failure counts.
    `trial` is what has come of it. A scenario that failed is run again, by a process of its own. If it does not fail
    again, the trial goes on behind it. One without a verdict is run again when all others have been; where that happens
    to a repetition, it is no try: at most TRIES times, then nobody knows.
    """

    def __init__(self, fault: Fault | None, scenarios: Sequence[str], *, needed: int = NEEDED) -> None:
        self.fault = fault
        self._needed = 1 if fault is None else needed
        self.scenarios = tuple(scenarios)
        self.trial = Trial()
        self._left = self.scenarios
        self._again: frozenset[str] = frozenset()
        self._doubted: Catch | None = None
        self._failures = 0
        self._unseen = 0

    def next_scenarios(self) -> tuple[str, ...]:
        """Return what the next process runs, until one fails; nothing if the trial has ended."""
        return self._left if self._doubted is None else (self._doubted.scenario,)

    def note(self, part: Trial) -> None:
        """Add what a process has found with the next scenarios."""
        doubted = self._doubted
        self.trial = replace(self.trial, seconds=round(self.trial.seconds + part.seconds, 3), error=part.error)
        if doubted is None:
            self._add(part)
        if part.error:
            self._end()
        elif doubted is not None:
            if part.catch is None and part.blind:
                self._looked_in_vain(doubted)
            else:
                self._repeated(doubted, part.catch is not None)
        elif part.catch is not None:
            self._doubted, self._failures, self._unseen = part.catch, 1, 0
            if self._failures == self._needed:
                self._catch(part.catch)

    def _add(self, part: Trial) -> None:
        """Add scenarios that were not run to confirm a catch."""
        self.trial = replace(
            self.trial,
            applied=_joined(self.trial.applied, part.applied),
            scenarios=_joined(self.trial.scenarios, part.scenarios),
            blind=(*self.trial.blind, *(name for name in part.blind if name in self._again)),
            sent=self.trial.sent + part.sent,
            false_alarm=self.trial.false_alarm or part.false_alarm,
        )
        again = [name for name in part.blind if name not in self._again]
        self._left = (*self._left[len(part.scenarios) :], *again)
        self._again |= {*again}

    def _repeated(self, catch: Catch, failed: bool) -> None:
        catch = self._doubted = replace(catch, tries=catch.tries + 1)
        self._failures += failed
        if self._failures == self._needed:
            self._catch(catch)
        elif catch.tries == TRIES:
            self._leave(catch)

    def _looked_in_vain(self, catch: Catch) -> None:
        self._unseen += 1
        if self._unseen == TRIES:
            self.trial = replace(self.trial, blind=_joined(self.trial.blind, (catch.scenario,)))
            self._leave(catch)

    def _leave(self, catch: Catch) -> None:
        """Go on behind a scenario whose failure was not confirmed."""
        self.trial = replace(self.trial, unconfirmed=(*self.trial.unconfirmed, catch))
        self._doubted = None

    def _catch(self, catch: Catch) -> None:
        self.trial = replace(self.trial, catch=catch)
        self._end()

    def _end(self) -> None:
        self._left, self._doubted = (), None


def _joined(names: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Return names with more of them behind, each once."""
    return tuple(dict.fromkeys((*names, *more)))
