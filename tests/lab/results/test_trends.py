from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cli.history_view import exit_code
from lab.results.compare import Verdict
from lab.results.history import Lineage, lineages, newest
from lab.results.result import Better, Load, Series, exact
from lab.results.trends import Checked, check
from tests.lab.results.samples import NEEDS_RUPTURES, times
from tests.lab.results.test_history import commit, filled, measured

COMMITS = 24
pytestmark = NEEDS_RUPTURES


@pytest.fixture
def lineage(tmp_path: Path) -> Lineage:
    """Reloads become 5 % slower at commit 15, packets 5 % more at commit 8, the size grows at commit 10."""
    for number in range(COMMITS):
        slower, more = 1.05 if number >= 15 else 1.0, 1.05 if number >= 8 else 1.0
        filled(
            tmp_path,
            [
                measured(
                    number,
                    Series("reload", "s", times(number, middle=0.02 * slower)),
                    Series("step", "s", times(100 + number)),
                    Series("packets", "1/s", times(200 + number, middle=1e6 * more), Better.HIGHER),
                    exact("size", "bytes", 7400 if number >= 10 else 7000),
                    exact("maps", "bytes", 0 if number < 20 else 4096),
                )
            ],
        )
    return lineages(tmp_path)[0]


def found(checked: Checked) -> list[tuple[str, str, str, Verdict]]:
    return [(each.metric, each.old, each.new, each.verdict) for each in checked.findings]


def test_each_step_is_named_with_the_commits_between_which_it_is(lineage: Lineage) -> None:
    checked = check(lineage, 0.02)
    assert found(checked) == [
        ("reload", commit(14), commit(15), Verdict.WORSE),
        ("packets", commit(7), commit(8), Verdict.BETTER),
        ("size", commit(9), commit(10), Verdict.WORSE),
        ("maps", commit(19), commit(20), Verdict.WORSE),
    ]
    reload, _packets, size, maps = checked.findings
    assert reload.change.low < 0.05 < reload.change.high
    assert (size.p, round(size.change.middle, 4), maps.change.middle) == (None, 0.0571, math.inf)
    assert checked.unknown == {}


def test_the_threshold_decides_what_counts(lineage: Lineage) -> None:
    assert [each.metric for each in check(lineage, 0.055).findings] == ["size", "maps"]


def test_one_more_of_what_went_wrong_is_a_step_however_many_there_were(tmp_path: Path) -> None:
    filled(tmp_path, [measured(number, exact("packets lost", "packets", 1000 + number // 2)) for number in range(4)])
    assert found(check(lineages(tmp_path)[0], 0.02)) == [("packets lost", commit(1), commit(2), Verdict.WORSE)]


def last(number: int, *of: Lineage) -> list[str]:
    """Return the metrics of the first series that became worse at one of the last commits of all of them."""
    return [each.metric for each in check(of[0], 0.02, newest(of, number)).regressions]


def test_only_the_last_commits_count_if_that_is_asked_for(lineage: Lineage) -> None:
    assert last(9, lineage) == ["reload", "maps"]
    assert last(4, lineage) == ["maps"]
    assert len(check(lineage, 0.02, newest([lineage], 4)).findings) == 4


def test_the_last_commits_are_those_of_all_series(tmp_path: Path) -> None:
    """A machine that is measured no more has none of them after a while."""
    filled(tmp_path, [measured(number, exact("size", "bytes", 7 + (number > 1))) for number in range(4)])
    filled(tmp_path, [measured(number, options={"pods": "9"}) for number in range(4, 9)])
    new, old = lineages(tmp_path)
    assert (len(new.commits), len(old.commits)) == (5, 4)
    assert last(7, old, new) == ["size"]
    assert last(6, old, new) == []
    assert last(1, old) == []
    assert last(2, old) == ["size"]


def test_a_commit_that_was_measured_again_is_no_newer_one(tmp_path: Path) -> None:
    sizes = (1, 1, 2, 2, 2)
    days = (0, 1, 2, 3, 1)
    for number, (size, day) in enumerate(zip(sizes, days, strict=True)):
        filled(tmp_path, [replace(measured(day, exact("size", "bytes", size)), started=measured(number).started)])
    (lineage,) = lineages(tmp_path)
    assert lineage.commits == tuple(map(commit, days))
    assert [(each.at, each.recent) for each in check(lineage, 0.02, newest([lineage], 1)).findings] == [(2, False)]
    assert [(each.at, each.recent) for each in check(lineage, 0.02, newest([lineage], 2)).findings] == [(2, True)]


def test_of_too_few_commits_nothing_is_said_of_times_and_so_of_the_series(tmp_path: Path) -> None:
    """What is exact is looked at, and does not make up for the times."""
    filled(tmp_path, [measured(number) for number in range(5)])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert checked.unknown == {"reload": "5 of the 11 commits that are needed"}
    assert checked.unsaid == "reload: 5 of the 11 commits that are needed"


def test_a_step_of_a_reload_that_came_late_does_not_take_the_word_from_the_reload(tmp_path: Path) -> None:
    for number in range(COMMITS):
        late = [Series("step: new", "s", times(number))] if number > 20 else []
        filled(tmp_path, [measured(number, Series("reload", "s", times(number)), *late, bench="ab")])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert "step: new" in checked.unknown
    assert checked.unsaid == ""


def test_of_a_series_whose_results_are_all_noisy_nothing_is_said(tmp_path: Path) -> None:
    busy = Load((9.0, 9.0, 9.0), (9.0, 9.0, 9.0), 0.9)
    for number in range(COMMITS):
        series = (Series("reload: pipeline, 2 threads", "s", times(number)), exact("size", "bytes", 7000))
        filled(tmp_path, [replace(measured(number, *series), load=busy)])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert (checked.metrics, checked.findings) == (2, ())
    assert checked.unsaid == "reload: pipeline, 2 threads: too noisy in every result"
    assert exit_code([checked]) == 3


def test_values_of_0_have_no_ratio(tmp_path: Path) -> None:
    filled(tmp_path, [measured(number, Series("lost", "packets", (0.0,) * 6)) for number in range(COMMITS)])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert checked.unknown == {"lost": "values of 0 have no ratio"}
    assert checked.unsaid == "lost: values of 0 have no ratio"
