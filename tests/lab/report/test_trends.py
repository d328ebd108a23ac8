"""trends.py: a history on the page has each metric with its steps, and the commits between which they are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab.report.documents import BadDocument, read_document
from lab.report.page import PageMaker
from lab.report.trends import trends
from lab.results.history import lineages
from lab.results.result import Series, exact
from tests.lab.results.samples import NEEDS_RUPTURES, times
from tests.lab.results.test_history import commit, filled, measured


def history(directory: Path) -> Path:
    """Fill a directory with twelve commits, at the sixth of which the size grows."""
    for number in range(12):
        sizes = exact("size", "bytes", 7000 if number < 5 else 7400)
        filled(directory, [measured(number, Series("a <b> & c", "s", times(number)), sizes)])
    return directory


@NEEDS_RUPTURES
def test_a_step_is_drawn_between_its_commits_and_told(tmp_path: Path) -> None:
    (found,) = trends(lineages(history(tmp_path)), 0.02)
    assert found.good is False
    assert found.sentence == "12 commits, 2 metrics, 1 step to the worse"
    assert found.steps.rows == [("size", "worse", "+5.71 %", "exact", "040404040404", "050505050505")]
    size = next(figure for figure in found.figures if figure.title == "size, bytes")
    (line,) = size.content["layout"]["shapes"]
    assert (line["x0"], line["line"]["color"]) == (4.5, "--bad")
    assert size.content["data"][0]["y"] == [7000] * 5 + [7400] * 7
    assert "worse by +5.71 % between 040404040404 and 050505050505" in size.alt
    assert size.tables[0].rows[4] == (commit(4), "7000")
    assert [figure.folded for figure in found.figures if figure is not size] == [True]


def test_a_step_at_a_commit_that_was_measured_before_is_drawn_where_it_is(tmp_path: Path) -> None:
    """The first commit, measured again at the end, where it is larger."""
    sizes = [7000, 7000, 7000, 7400]
    for number, size in zip((0, 1, 2, 3), sizes, strict=True):
        made = measured(number, exact("size", "bytes", size))
        again = replace(made, subjects=measured(0).subjects) if number == 3 else made
        filled(tmp_path, [again])
    (found,) = trends(lineages(tmp_path), 0.02)
    (figure,) = found.figures
    (line,) = figure.content["layout"]["shapes"]
    assert (line["x0"], figure.content["layout"]["xaxis"]["tickvals"]) == (2.5, [0, 3])


def test_a_page_is_made_where_no_step_can_be_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    document = read_document(history(tmp_path))
    (found,) = trends(document.history, 0.02)
    assert found.good is None
    assert found.sentence == (
        "12 commits, 2 metrics, nothing can be said of 2 metrics (steps are found with the package ruptures, which is "
        "not there for this version of Python)"
    )
    assert [figure.content["layout"]["shapes"] for figure in found.figures] == [[], []]
    text = PageMaker([document]).make()
    assert "nothing can be said of 2 metrics" in text
    assert "> worse</span>" not in text
    assert "> good</span>" not in text


@NEEDS_RUPTURES
def test_a_page_shows_a_directory_of_history(tmp_path: Path) -> None:
    text = PageMaker([read_document(history(tmp_path))]).make()
    assert '<a href="#history">History</a>' in text
    assert "12 commits, 2 metrics, 1 step to the worse" in text
    # At the top and in its section, as trials are marked.
    assert text.count('<span class="outcome o-failed"><span aria-hidden="true">✗</span> worse</span>') == 2
    assert "a &lt;b&gt; &amp; c" in text
    assert "a <b>" not in text


def test_the_directory_of_a_run_is_told_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BadDocument, match=rf"{tmp_path} is the directory of a run: give {tmp_path}/run\.json$"):
        read_document(tmp_path)


def test_a_directory_without_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="holds no results: put some there with `reloadlab history add`"):
        read_document(tmp_path)
