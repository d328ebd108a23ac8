"""Where scenarios run: the machines that a session is told of, and the check that a report was made on its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from lab.machines.worker import IDENTITY
from lab.scenario.records import WHERE

LOST = "lost"
"""A file beside that of the session: a JSON object with the reason for each machine that was lost."""


@dataclass(frozen=True, slots=True)
class Place:
    """A machine as the session knows it: execnet's description of its workers, and the identity that they must have.

    `names` are what places are called there and here, for the texts of failures.
    """

    label: str
    spec: str
    workers: int
    identity: Mapping[str, str | int]
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """What the session is told: the machines, and whether a scenario that was lost is run again on another."""

    places: tuple[Place, ...]
    reschedule: bool

    def to_json(self) -> str:
        places = [{name: getattr(place, name) for name in Place.__slots__} for place in self.places]
        return json.dumps({"places": places, "reschedule": self.reschedule})

    @classmethod
    def from_json(cls, text: str) -> Spread:
        data = json.loads(text)
        places = (
            Place(**{**each, "names": tuple((there, here) for there, here in each["names"])}) for each in data["places"]
        )
        return cls(tuple(places), data["reschedule"])


def check_place(report: pytest.TestReport, place: Place | None) -> None:
    """Say in a report where it was made; it becomes a failure if that is not the machine whose worker has sent it.

    `place` is that machine, None if it was no worker's.
    """
    told = getattr(report, IDENTITY, None)
    setattr(report, WHERE, {} if place is None else {"machine": place.label, "kernel": place.identity["kernel"]})
    # What xdist reports of a worker that died was made by nobody.
    died = report.when not in ("setup", "call", "teardown")
    if place is None or (told != place.identity and not died):
        report.outcome = "failed"
        where = "nowhere that is known" if told is None else f"on {told['host']} with kernel {told['kernel']}"
        report.longrepr = f"it ran {where}, not on {place.label if place else 'a machine'}: it proves nothing"
    if place is not None and report.failed:
        for there, here in place.names:
            report.longrepr = str(report.longrepr).replace(there, here)
