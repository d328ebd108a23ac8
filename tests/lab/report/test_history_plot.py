from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest

from lab.report.history_plot import plot
from lab.results.history import lineages
from lab.results.result import Series, exact
from lab.results.trends import check
from tests.lab.results.samples import NEEDS_RUPTURES, times
from tests.lab.results.test_history import commit, filled, measured

SVG = "{http://www.w3.org/2000/svg}"
pytestmark = NEEDS_RUPTURES


def test_a_picture_has_each_value_and_each_step_and_needs_nothing_else(tmp_path: Path) -> None:
    for number in range(12):
        name = 'a <b> & \x07"c"'
        sizes = exact("size", "bytes", 7000 if number < 5 else 7400)
        filled(tmp_path, [measured(number, Series(name, "s", times(number)), sizes)])
    text = plot([check(lineage, 0.02) for lineage in lineages(tmp_path)])
    picture = fromstring(text)
    points = [title.text for title in picture.findall(f".//{SVG}circle/{SVG}title")]
    assert len(points) == 24
    assert f"{commit(3)}: 7000 bytes" in points
    (step,) = picture.findall(f".//{SVG}line")
    assert (step.get("class"), step[0].text) == ("worse", "worse by +5.71 % between 040404040404 and 050505050505")
    assert any('a <b> & ?"c"' in (each.text or "") for each in picture.findall(f".//{SVG}text"))
    assert re.findall(r"https?://[^\"]*", text) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("values", [(7.0,), (0.0, 0.0), (1.0, 1.0)])
def test_metrics_without_a_range_are_drawn(values: tuple[float, ...], tmp_path: Path) -> None:
    filled(tmp_path, [measured(number, exact("x", "n", value)) for number, value in enumerate(values)])
    picture = fromstring(plot([check(lineage, 0.02) for lineage in lineages(tmp_path)]))
    assert len(picture.findall(f".//{SVG}circle")) == len(values)


def test_a_step_is_drawn_at_its_place_and_one_from_0_has_no_percentage(tmp_path: Path) -> None:
    """The commit behind the step is also the first one, which was measured again."""
    for number, value in enumerate((0.0, 0.0, 3.0)):
        made = measured(number, exact("x", "n", value))
        again = replace(made, subjects={"": {**made.subjects[""], "commit": commit(0)}}) if number == 2 else made
        filled(tmp_path, [again])
    picture = fromstring(plot([check(lineage, 0.02) for lineage in lineages(tmp_path)]))
    (step,) = picture.findall(f".//{SVG}line")
    assert step[0].text == "worse from 0 between 010101010101 and 000000000000"
    points = [float(point.get("cx", "")) for point in picture.findall(f".//{SVG}circle")]
    assert points[1] < float(step.get("x1", "")) < points[2]
    assert not any("inf" in (text.text or "") for text in picture.findall(f".//{SVG}text"))
