"""sidebyside.py: a result of more than two sides is shown as one table and as plots, side by side."""

from __future__ import annotations

from pathlib import Path

from lab.report.documents import Document
from lab.report.page import PageMaker
from lab.report.sidebyside import groups_of, has_many_sides, overview, refusals, side_figures, tables_without_figure
from lab.results.result import Result, Series, exact, to_json
from tests.lab.results.samples import result

SIDES = ("1.15", "1.16 <b>", "1.17")


def sample() -> Result:
    """Return reloads with their phases, of which the last side has no values, and many exact metrics."""
    series = []
    for number, side in enumerate(SIDES[:2], 1):
        series += [
            Series("reload", "s", (0.010 * number, 0.012 * number, 0.030 * number), side=side),
            Series("phase: load", "s", (0.009 * number,), side=side),
            exact("instructions", "instructions", 1000 * number, side=side),
            *(exact(f"verified: program {each}", "instructions", each * number, side=side) for each in range(1, 9)),
        ]
    series += [Series("phase: write object", "s", (0.001,), side=SIDES[0])]
    series += [Series("reload", "s", (), side=SIDES[2], refusal="no such program")]
    return result(*series, sides=SIDES, bench="releases")


def test_two_sides_are_compared_and_more_are_shown_side_by_side() -> None:
    assert [has_many_sides(result(sides=sides)) for sides in (("",), ("A", "B"), SIDES)] == [False, False, True]


def test_the_overview_has_a_row_for_each_metric_and_a_column_for_each_side() -> None:
    table = overview(sample())
    assert table.columns == ("median", *SIDES)
    assert table.rows == [
        ("reload, ms", "12.00", "24.00", "-"),
        ("instructions", "1,000", "2,000", "-"),
        ("phase: load, ms", "9.00", "18.00", "-"),
        ("phase: write object, ms", "1.00", "-", "-"),
    ]


def test_a_group_of_many_metrics_is_a_table_with_the_metrics_below_each_other() -> None:
    (table,) = tables_without_figure(sample())
    assert (table.columns, table.caption) == (("", *SIDES), "Verified, instructions")
    assert table.rows[1] == ("program 2", "2", "4", "-")


def test_phases_are_the_pieces_of_one_bar_and_others_are_marks_with_their_middle_half() -> None:
    figures = {figure.title: figure for figure in side_figures(sample())}
    assert list(figures) == ["Reload, milliseconds", "Instructions", "Phase, milliseconds"]
    load, write = figures["Phase, milliseconds"].content["data"]
    assert (load["type"], load["x"], write["x"]) == ("bar", [9.0, 18.0, 0.0], [1.0, 0.0, 0.0])
    (marks,) = figures["Reload, milliseconds"].content["data"]
    assert marks["x"] == [12.0, 24.0]
    assert marks["y"] == ["1.15", "1.16 &lt;b&gt;"]
    assert [round(each) for each in marks["error_x"]["array"]] == [9, 18]
    assert "reload: 12.00 ms (1.15) to 24.00 ms (1.16 <b>)" in figures["Reload, milliseconds"].alt


def test_values_that_are_far_apart_have_a_logarithmic_axis_and_others_begin_at_zero() -> None:
    def axis(*values: float) -> object:
        series = [Series("a", "s", (value,), side=side) for value, side in zip(values, SIDES, strict=True)]
        (figure,) = side_figures(result(*series, sides=SIDES))
        return figure.content["layout"]["xaxis"]

    assert axis(0.001, 0.002, 1.0)["type"] == "log"  # type: ignore[index]
    assert axis(0.001, 0.002, 0.003)["rangemode"] == "tozero"  # type: ignore[index]
    assert axis(0.0, 0.002, 1.0)["rangemode"] == "tozero"  # type: ignore[index]


def test_a_metric_whose_sides_have_different_units_is_in_the_table_alone() -> None:
    series = Series("took: a", "s", (1.0,), side=SIDES[0]), Series("took: a", "packets", (2.0,), side=SIDES[1])
    assert side_figures(result(*series, sides=SIDES)) == []


def test_the_page_shows_all_sides_once_and_says_what_was_not_measured() -> None:
    found = sample()
    text = PageMaker([Document(str(Path("x.json")), "result", to_json(found), found)]).make()
    assert refusals(found) == [("1.17", "reload", "no such program")]
    assert "1.17: reload was not measured: no such program" in text
    assert "1.16 &lt;b&gt;" in text
    assert "1.16 <b>" not in text
    assert 'href="#sides"' in text
    assert 'href="#comparison"' not in text
    assert [group.title for group in groups_of(found)] == ["", "phase", "verified"]
