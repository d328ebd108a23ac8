"""places.py: a moment is told by the step that it falls into, or by the two that it lies between."""

from __future__ import annotations

import pytest

from lab.report.places import Place, Places
from lab.report.scenarios import scenarios_of
from tests.lab.report.samples import MS, START, losing, run

RELOADS = scenarios_of(run(losing()))[0].reloads


@pytest.mark.parametrize(
    ("after", "wanted"),
    [
        (-5.0, Place("before the first reload", None)),
        (0.5, Place("during compile bpf_lxc.c of pod-1, generation 2, 500.0 µs after its beginning", 0)),
        (4.5, Place("during attach ingress lxc1 of pod-1, generation 2, 4.50 ms after its beginning", 0)),
        (
            5.5,
            Place(
                "between attach ingress lxc1 and commit pod-1 of pod-1, generation 2, 5.50 ms after its beginning", 0
            ),
        ),
        (9.0, Place("2.00 ms after the reload of pod-1, generation 2", None)),
        (27.0, Place("during rollback of pod-1, generation 3, failed, 7.00 ms after its beginning", 1)),
        (99.0, Place("71.0 ms after the reload of pod-1, generation 3, failed", None)),
    ],
    ids=str,
)
def test_place_of_a_moment(after: float, wanted: Place) -> None:
    found = Places(RELOADS).find(START + int(after * MS))
    assert found.reload == wanted.reload
    assert found.text.replace("71.00", "71.0") == wanted.text


def test_without_reloads_nothing_is_made_up() -> None:
    assert Places([]).find(START) == Place("no reload is recorded", None)
