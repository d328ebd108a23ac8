from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lab.results.compare import Verdict
from lab.results.history import Lineage, lineages
from lab.results.result import Better, Series, exact
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


def test_only_the_last_commits_count_if_that_is_asked_for(lineage: Lineage) -> None:
    assert [each.metric for each in check(lineage, 0.02, last=9).regressions] == ["reload", "maps"]
    assert [each.metric for each in check(lineage, 0.02, last=4).regressions] == ["maps"]
    assert len(check(lineage, 0.02, last=4).findings) == 4


def test_a_commit_that_was_measured_again_is_two_commits(tmp_path: Path) -> None:
    """A step at the older one is not within the last ones."""
    for number, size in enumerate((1, 2, 2, 2)):
        made = measured(number, exact("size", "bytes", size))
        again = replace(made, subjects={"": {**made.subjects[""], "commit": commit(1)}}) if number == 3 else made
        filled(tmp_path, [again])
    (lineage,) = lineages(tmp_path)
    assert len(lineage.commits) == 4
    assert [(each.at, each.recent) for each in check(lineage, 0.02, last=2).findings] == [(1, False)]
    assert [(each.at, each.recent) for each in check(lineage, 0.02, last=3).findings] == [(1, True)]


def test_of_too_few_commits_only_exact_metrics_say_something(tmp_path: Path) -> None:
    filled(tmp_path, [measured(number) for number in range(5)])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert checked.unknown == {"reload": "5 of the 11 commits that are needed"}
    assert checked.said


def test_values_of_0_have_no_ratio(tmp_path: Path) -> None:
    filled(tmp_path, [measured(number, Series("lost", "packets", (0.0,) * 6)) for number in range(COMMITS)])
    checked = check(lineages(tmp_path)[0], 0.02)
    assert checked.unknown == {"lost": "values of 0 have no ratio"}
    assert not checked.said
