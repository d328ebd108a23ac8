"""No report passes that was not made where it should have been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lab.machines.identity import identity
from lab.machines.place import Place, Spread, check_place
from lab.machines.worker import IDENTITY
from lab.scenario.records import WHERE

HERE = identity().to_json()
THERE = {**HERE, "host": "alpha", "network": 1}
PLACE = Place("ssh:alpha", "ssh=alpha//machine=ssh:alpha", 1, THERE)


def heard(attributes: dict[str, Any], place: Place | None = PLACE) -> pytest.TestReport:
    """Return a report of a test that passed, after it was checked."""
    report = pytest.TestReport("a.py::test_b", ("a.py", None, "test_b"), {}, "passed", None, "call")
    for name, value in attributes.items():
        setattr(report, name, value)
    check_place(report, place)
    return report


def test_a_report_of_the_right_machine_stays_as_it_is() -> None:
    report = heard({IDENTITY: THERE})
    assert report.passed
    assert getattr(report, WHERE) == {"machine": "ssh:alpha", "kernel": THERE["kernel"]}


def test_a_report_that_was_made_here_instead_fails() -> None:
    for report in (heard({IDENTITY: HERE}), heard({IDENTITY: HERE}, None)):
        assert report.failed
        assert f"it ran on {HERE['host']} with kernel {HERE['kernel']}, not on" in str(report.longrepr)


@pytest.mark.parametrize("name", ["boot", "host", "network", "kernel"])
def test_everything_that_tells_machines_apart_counts(name: str) -> None:
    assert heard({IDENTITY: {**THERE, name: "another"}}).failed


def test_a_report_that_does_not_say_where_it_was_made_fails() -> None:
    report = heard({})
    assert "it ran nowhere that is known, not on ssh:alpha" in str(report.longrepr)


def test_places_are_named_as_they_are_here() -> None:
    place = replace(PLACE, names=(("../trees/x/", ""), ("/far/packets", "/here/ssh-alpha")))
    spread = Spread.from_json(Spread((place,), reschedule=True).to_json())
    assert spread == Spread((place,), reschedule=True)
    failed = {IDENTITY: THERE, "outcome": "failed", "longrepr": "../trees/x/a.py:7: /far/packets/a.pcapng"}
    report = heard(failed, spread.places[0])
    assert report.longrepr == "a.py:7: /here/ssh-alpha/a.pcapng"
