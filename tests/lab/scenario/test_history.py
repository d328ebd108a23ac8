"""Which load's programs packets could meet, at a time."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from bpf import LIBRARY
from datapath.base.timing import Interval
from datapath.reload.outcome import FailedReload, Outcome, Span
from lab.agent.agent import Agent
from lab.scenario.history import History

POD = 101


def spans(start: int) -> tuple[Span, ...]:
    steps = ("compile", "insert policy", "attach ingress", "commit")
    return tuple(Span(step, "x", Interval(1, start + 10 * n, start + 10 * n + 5)) for n, step in enumerate(steps))


def outcome(generation: int, start: int, endpoint: int = POD) -> Outcome:
    return Outcome(f"endpoint {endpoint}", endpoint, generation, (), (), (), spans(start))


class Told:
    """A history that hears of what a test tells it."""

    def __init__(self) -> None:
        self.history = History()
        config = SimpleNamespace(library=LIBRARY)
        self._agent = SimpleNamespace(node=SimpleNamespace(name="n"), config=config, on_outcome=None, on_failure=None)
        self.at = partial(self.history.generations_at, "n", POD)

    def first(self, *loads: Outcome) -> None:
        self.history.hear_first_loads([cast("Agent", self._agent)])
        for load in loads:
            self._hear(load)
        self.history.hear([cast("Agent", self._agent)])

    def reload(self, load: Outcome) -> None:
        self._hear(load)

    def failure(self, failed: FailedReload) -> None:
        cast("Any", self._agent).on_failure(failed)

    def _hear(self, load: Outcome) -> None:
        cast("Any", self._agent).on_outcome(load)


def test_while_programs_are_exchanged_there_are_two_loads() -> None:
    told = Told()
    told.first(outcome(1, 100), outcome(2, 150, endpoint=102))
    told.reload(outcome(3, 1000))
    assert [told.at(time) for time in (500, 1009, 1010, 1035, 1036)] == [[1], [1], [1, 3], [1, 3], [3]]


def test_what_has_no_load_yet_has_none() -> None:
    told = Told()
    told.first(outcome(1, 100))
    assert told.at(50) == []
    assert told.history.generations_at("n", 7, 500) == []
    assert told.history.generations_at("other", POD, 500) == []


def test_a_load_that_was_undone_could_be_met_until_then() -> None:
    told = Told()
    told.first(outcome(1, 100))
    told.failure(FailedReload("pod", POD, 4, spans(1000), Interval(1, 1040, 1050), "injected"))
    assert [told.at(time) for time in (1005, 1010, 1050, 1051)] == [[1], [1, 4], [1, 4], [1]]
    assert told.history.loads_on("n") == []
    assert [failed.generation for failed in told.history.undone_on("n")] == [4]


def test_a_load_that_failed_after_its_commit_stays() -> None:
    told = Told()
    told.first(outcome(1, 100))
    done = outcome(4, 1000)
    told.failure(FailedReload(done.subject, POD, 4, done.spans, None, "injected", done))
    assert told.at(2000) == [4]
    assert told.history.loads_on("n") == [done]
    assert told.history.undone_on("n") == []
    assert told.history.replaced_on("n") == {1: done.subject}
