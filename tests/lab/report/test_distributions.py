"""distributions.py: boxes have the cuts of their values, waterfalls the reloads of one round."""

from __future__ import annotations

import random
from typing import Any

import plotly.graph_objects as go
import pytest

from lab.report.distributions import POINTS, Sample, box_figure, parallel_figures, rates_table, step_figure
from lab.report.figure import Figure
from tests.lab.report.samples import losing, parallel, record, run


def uncoloured(value: Any) -> Any:
    """Return a figure with colours that plotly knows: those of the page are names until it is drawn."""
    if isinstance(value, dict):
        return {name: uncoloured(item) for name, item in value.items()}
    if isinstance(value, list):
        return [uncoloured(item) for item in value]
    return "red" if isinstance(value, str) and value.startswith("--") else value


def understood(figure: Figure) -> Any:
    """Return plotly's own view of a figure; ValueError if it knows a name or a value not."""
    return go.Figure(uncoloured({"data": figure.content["data"], "layout": figure.content["layout"]}))


def test_few_values_are_all_in_the_figure() -> None:
    figure = box_figure("Times", "alt", [Sample("a <b>", (1.0, 2.0, 4.0)), Sample("none", ())], "ms")
    (box,) = understood(figure).data
    assert tuple(box.x) == (1.0, 2.0, 4.0)
    assert box.name == "a &lt;b&gt;"
    assert figure.content["layout"]["xaxis"]["type"] == "log"
    assert figure.tables[0].rows == [("a <b>", "3", "1.00", "1.50", "2.00", "3.00", "3.80", "3.96", "4.00")]


def test_of_many_values_the_box_has_the_cuts_and_those_beyond() -> None:
    noise = random.Random(1)
    values = sorted([*(noise.uniform(10, 20) for _ in range(5000)), 90.0, 95.0])
    (box,) = understood(box_figure("Times", "alt", [Sample("a", values)], "ms")).data
    assert len(values) > POINTS
    assert box.median[0] == pytest.approx(15, abs=0.5)
    assert (box.lowerfence[0], box.upperfence[0]) == (values[0], values[-3])
    assert list(box.x[0]) == [90.0, 95.0]


def test_values_of_zero_have_a_linear_axis() -> None:
    figure = box_figure("Times", "alt", [Sample("a", (0.0, 2.0))], "ms")
    understood(figure)
    assert "type" not in figure.content["layout"]["xaxis"]


def test_steps_of_all_reloads_are_gathered_by_name() -> None:
    figure = step_figure(run(record(), losing()))
    assert figure is not None
    assert [row[:2] for row in figure.tables[0].rows] == [
        ("compile", "2"),
        ("load programs", "2"),
        ("attach ingress", "2"),
        ("commit", "2"),
    ]
    assert step_figure(run()) is None


def test_parallel_reloads_have_distributions_and_a_waterfall_for_each_number_of_workers() -> None:
    document = run(measured=parallel(workers=(1, 2), reloads=6))["parallel"]
    figures = parallel_figures(document)
    assert [figure.title for figure in figures] == [
        "Whole reloads",
        "One round of 1 worker",
        "One round of 2 workers",
        "Steps with 1 worker",
        "Steps with 2 workers",
    ]
    understood(figures[0])
    # One reload each 8 ms, each of four steps of 1 ms.
    assert [bar[1:3] for bar in figures[1].content["bars"]] == [[8.0 * at, 4.0] for at in range(6)]
    table = rates_table(document)
    assert [row[:4] for row in table.rows] == [
        ("1", "12", "60.00", "60.00, 60.00"),
        ("2", "12", "60.00", "60.00, 60.00"),
    ]


def test_reloads_that_all_failed_have_no_figure() -> None:
    document = run(measured=parallel(workers=(1,), reloads=0))["parallel"]
    assert parallel_figures(document) == []
    assert rates_table(document).rows == [("1", "0", "0", "0, 0", "-", "-", "-", "-")]
