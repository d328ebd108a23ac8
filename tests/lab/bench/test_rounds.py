from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from datapath.errors import ReloadlabError
from lab.bench.releases import ReleasesReport
from lab.bench.rounds import WARM_UP, BackgroundLoad, Measurement, TimedCall, own_time, run_in_turns


def test_ratio_is_the_median_of_the_rounds() -> None:
    """Rounds in which the machine was slow are slow for both: what counts is the quotient of each pair."""
    floor, mine = Measurement("floor", (1.0, 10.0, 2.0)), Measurement("mine", (2.0, 20.0, 8.0))
    middle, low, high = mine.ratio(floor)
    assert (middle, low, high) == (2.0, 2.0, 4.0)
    assert mine.median == 8.0


def test_one_round_has_no_quartiles() -> None:
    assert Measurement("mine", (3.0,)).ratio(Measurement("floor", (2.0,))) == (1.5, 1.5, 1.5)


def test_own_work_is_no_background_load() -> None:
    """Our own work is not that of share, however much it is."""
    busy = BackgroundLoad()
    share = 1.0
    deadline = time.monotonic() + 20
    while share > 0.9:  # what else runs here may have the CPUs for a while
        assert time.monotonic() < deadline
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        share = busy.share()
    assert 0 <= share <= 0.9


BUSY_THEN_WAITING = """
import sys, time
while time.process_time() < 0.5:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def test_the_work_of_a_child_is_our_own_before_and_after_it_ends() -> None:
    """A loader does its part of the work, and lives as long as what is measured."""
    before = own_time()
    argv = ["sh", "-c", 'python=$1; shift; "$python" -c "$@"; exit', "sh", sys.executable, BUSY_THEN_WAITING]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        during = own_time()
        process.communicate(timeout=60)
    assert during - before >= 0.45
    assert during <= own_time() < during + 0.45, "not counted twice"


@dataclass
class Way:
    """Notes when it is called, and takes as many seconds as it was called times."""

    name: str
    log: list[str]
    calls: list[int] = field(default_factory=list)

    def run(self) -> float:
        self.log.append(self.name)
        self.calls.append(len(self.calls) + 1)
        return float(self.calls[-1])


def test_variants_run_in_turns_and_each_begins_once() -> None:
    log: list[str] = []
    rows = run_in_turns([Way(name, log) for name in "abc"], 3, lambda text: None)
    turns = ["".join(log[at : at + 3]) for at in range(0, len(log), 3)]
    assert turns[WARM_UP:] == ["abc", "bca", "cab"]
    assert [(row.name, row.seconds) for row in rows] == [(name, (4.0, 5.0, 6.0)) for name in "abc"]


@pytest.mark.parametrize("rounds", [1, 2, 20])
def test_no_more_rounds_are_discarded_than_count(rounds: int) -> None:
    log: list[str] = []
    (row,) = run_in_turns([Way("a", log)], rounds, lambda text: None)
    assert (len(row.seconds), len(log)) == (rounds, rounds + min(rounds, WARM_UP))
    assert ReleasesReport(rounds).course().discarded == len(log) - rounds


@dataclass
class Mule(Way):
    """A way that works so many times, and no more."""

    times: int = 0

    def run(self) -> float:
        if len(self.calls) == self.times:
            raise ReloadlabError("it will not go")
        return super().run()


def test_a_variant_that_fails_is_left_out_with_its_reason() -> None:
    log: list[str] = []
    ways = [Way("a", log), Mule("b", log, times=WARM_UP + 1), Mule("c", log)]
    rows = run_in_turns(ways, 3, lambda text: None, tolerant=True)
    assert [(row.name, row.seconds, row.refusal) for row in rows] == [
        ("a", (4.0, 5.0, 6.0), ""),
        ("b", (), "it will not go"),
        ("c", (), "it will not go"),
    ]
    assert rows[1].positions == ()
    assert log.count("b") == WARM_UP + 1


def test_a_failure_is_raised_where_no_variant_may_be_left_out() -> None:
    with pytest.raises(ReloadlabError, match="it will not go"):
        run_in_turns([Way("a", []), Mule("b", [])], 1, lambda text: None)


def test_without_variants_there_is_nothing() -> None:
    assert run_in_turns([], 3, lambda text: None) == []


def test_best_of_several_tries_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 5.0, 10.0, 12.0, 20.0, 23.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert TimedCall("work", lambda: None, tries=3).run() == 2.0
    assert next(clock, None) is None


def test_a_call_is_divided_by_its_count() -> None:
    begin = time.perf_counter()
    took = TimedCall("nap", lambda: time.sleep(0.02), 4).run()
    assert 0.02 / 4 <= took <= (time.perf_counter() - begin) / 4
