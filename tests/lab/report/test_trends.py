"""trends.py: a history on the page has each metric with its steps, and the commits between which they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.report.documents import BadDocument, read_document
from lab.report.page import PageMaker
from lab.report.trends import trends
from lab.results.history import lineages
from lab.results.result import Series, exact
from tests.lab.results.samples import times
from tests.lab.results.test_history import commit, filled, measured

pytest.importorskip("ruptures", reason="it does not know this version of Python")


def history(directory: Path) -> Path:
    """Fill a directory with twelve commits, at the sixth of which the size grows."""
    for number in range(12):
        sizes = exact("size", "bytes", 7000 if number < 5 else 7400)
        filled(directory, [measured(number, Series("a <b> & c", "s", times(number)), sizes)])
    return directory


def test_a_step_is_drawn_between_its_commits_and_told(tmp_path: Path) -> None:
    (found,) = trends(lineages(history(tmp_path)), 0.02)
    assert found.worse
    assert found.sentence == "12 commits, 2 metrics, 1 step to the worse"
    assert found.steps.rows == [("size", "worse", "+5.71 %", "exact", "040404040404", "050505050505")]
    size = next(figure for figure in found.figures if figure.title == "size, bytes")
    (line,) = size.content["layout"]["shapes"]
    assert (line["x0"], line["line"]["color"]) == (4.5, "--bad")
    assert size.content["data"][0]["y"] == [7000] * 5 + [7400] * 7
    assert "worse by +5.71 % between 040404040404 and 050505050505" in size.alt
    assert size.tables[0].rows[4] == (commit(4), "7000")
    assert [figure.folded for figure in found.figures if figure is not size] == [True]


def test_a_page_shows_a_directory_of_history(tmp_path: Path) -> None:
    text = PageMaker([read_document(history(tmp_path))]).make()
    assert '<a href="#history">History</a>' in text
    assert "12 commits, 2 metrics, 1 step to the worse" in text
    assert "a &lt;b&gt; &amp; c" in text
    assert "a <b>" not in text


def test_a_directory_without_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="holds no results: put some there with `reloadlab history add`"):
        read_document(tmp_path)
