"""run.json, the document of `reloadlab run`: its format, and what it says of the machine and of what was run."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Self

from lab.results.machine import Machine, this_machine
from lab.results.result import Load

RUN_FORMAT = 4
"""Version of run.json; see docs/run-json.md."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Where and of what a run is, in the words of a result: see docs/bench-json.md."""

    version: str
    started: str
    machine: Machine
    load: Load
    subject: dict[str, str]

    @classmethod
    def now(cls, subject: dict[str, str]) -> Self:
        """Return the facts of a run that begins now."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(version("reloadlab"), started, this_machine(), Load(os.getloadavg()), subject)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values, with the load of this moment."""
        return asdict(replace(self, load=replace(self.load, after=os.getloadavg())))
