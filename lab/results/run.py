"""run.json, the document of `reloadlab run`: its format, its facts, and the run as a result that can be compared.

A run has no rounds: its series hold a value per scenario, so that two runs are compared scenario by scenario.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Self

from datapath.base.statefile import WrongContent, typed
from lab.results.machine import Machine, this_machine
from lab.results.result import RUN, BadResult, Better, Course, Load, Result, Series, check_time, exact

RUN_FORMAT = 4
"""Version of run.json; see docs/run-json.md."""

PASSED, BAD = "passed", frozenset({"failed", "error"})
"""Outcomes of scenarios: what was measured in the first says something, the others speak against the run."""

_ONE_OF_A_NODE = frozenset({"host", "health", "overlay", "xdp"})
"""Subjects of reloads that are no pods."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Where and of what a run is, in the words of a result: see docs/bench-json.md."""

    version: str
    started: str
    machine: Machine
    load: Load
    subject: dict[str, str]

    def __post_init__(self) -> None:
        check_time(self.started)

    @classmethod
    def now(cls, subject: dict[str, str]) -> Self:
        """Return the facts of a run that begins now."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(version("reloadlab"), started, this_machine(), Load(os.getloadavg()), subject)

    def to_json(self, others: float | None = None) -> dict[str, Any]:
        """Return the facts as JSON values, with the load of this moment, and what other processes had of the CPUs."""
        return asdict(replace(self, load=Load(self.load.before, os.getloadavg(), others)))


@dataclass(frozen=True, slots=True)
class _Scenario:
    """`worst_delay` is that of all its packets, in seconds, None if there are none."""

    name: str
    outcome: str
    lost: int
    worst_delay: float | None


@dataclass(frozen=True, slots=True)
class _Reload:
    """The seconds of each kind of step; one that came twice is summed."""

    scenario: str
    subject: str
    steps: dict[str, float]

    @property
    def kind(self) -> str:
        return self.subject if self.subject in _ONE_OF_A_NODE else "pod"


@dataclass(frozen=True, slots=True)
class _Workers:
    workers: int
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Parallel:
    pods: int
    lost: int
    workers: tuple[_Workers, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What of a run can be compared."""

    facts: RunFacts
    seconds: float
    scenarios: tuple[_Scenario, ...]
    reloads: tuple[_Reload, ...]
    parallel: _Parallel | None

    @property
    def names(self) -> frozenset[str]:
        """The names of its scenarios."""
        return frozenset(scenario.name for scenario in self.scenarios)

    @property
    def passed(self) -> frozenset[str]:
        """The names of those that passed."""
        return frozenset(scenario.name for scenario in self.scenarios if scenario.outcome == PASSED)

    def result(
        self, names: Collection[str], passed: Collection[str], measured: Mapping[str, Collection[str]] | None = None
    ) -> Result:
        """Return the scenarios of these names, and the times of those of `passed`, as a result without sides.

        A metric that `measured` names has the times of these scenarios only.
        """
        facts, chosen = self.facts, [scenario for scenario in self.scenarios if scenario.name in names]
        times = self.times(passed)
        series = [
            *(_by_scenario(name, found, (measured or {}).get(name, found)) for name, found in times.items()),
            *self._parallel_series(),
            exact("scenarios that failed", "scenarios", sum(scenario.outcome in BAD for scenario in chosen)),
            exact("packets lost", "packets", sum(scenario.lost for scenario in chosen)),
        ]
        return Result(
            bench=RUN,
            version=facts.version,
            started=facts.started,
            machine=facts.machine,
            load=facts.load,
            options={"scenarios": f"{len(names)} ({_digest(names)})"},
            subjects={"": facts.subject},
            course=Course(rounds=len(passed)),
            seconds=self.seconds,
            series=tuple(series),
            complete=True,
        )

    def times(self, passed: Collection[str]) -> dict[str, dict[str, float]]:
        """Return reloads by their kind, steps, and worst delays: by metric the median of each scenario, in seconds."""
        reloads = [reload for reload in self.reloads if reload.scenario in passed]
        found: dict[str, dict[str, list[float]]] = {}
        for reload in reloads:
            found.setdefault(f"reload: {reload.kind}", {}).setdefault(reload.scenario, []).append(
                sum(reload.steps.values())
            )
        for reload in reloads:
            for step, seconds in reload.steps.items():
                found.setdefault(f"step: {step}", {}).setdefault(reload.scenario, []).append(seconds)
        delays = {each.name: [each.worst_delay] for each in self.scenarios if each.worst_delay is not None}
        found["worst delay"] = {name: delay for name, delay in delays.items() if name in passed}
        return {metric: {name: median(each) for name, each in of_metric.items()} for metric, of_metric in found.items()}

    def _parallel_series(self) -> Iterator[Series]:
        if self.parallel is not None:
            name = f"parallel, {self.parallel.pods} pods"
            for each in self.parallel.workers:
                yield Series(f"{name}: workers {each.workers}", "reloads/s", each.rates, Better.HIGHER)
            yield exact(f"{name}: packets lost", "packets", self.parallel.lost)


def _by_scenario(name: str, times: Mapping[str, float], scenarios: Collection[str]) -> Series:
    """Return a series of the times of these scenarios, in order of their names."""
    # Another run has the same group if it has such values of the same scenarios.
    return Series(name, "s", tuple(times[each] for each in sorted(scenarios)), group=f"scenarios {_digest(scenarios)}")


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()[:8]


def is_run(document: object) -> bool:
    """Tell whether a document is a run.json, of whatever version."""
    return isinstance(document, dict) and {"format", "scenarios", "reloads"} <= document.keys()


def checked_run(path: Path, document: object) -> Run:
    """Return the run that the document of a file is; BadResult unless it is a complete one of this version."""
    assert isinstance(document, dict)
    if document["format"] != RUN_FORMAT:
        raise BadResult(f"{path} has format {document['format']!r}, this version reads {RUN_FORMAT}: run it again")
    if document.get("complete") is not True:
        raise BadResult(f"{path} is of a run that did not come to its end: run it again")
    machines = document.get("machines", [])
    if not isinstance(machines, list):
        raise BadResult(f"{path} holds no run: machines is not a list")
    if len(machines) > 1:
        raise BadResult(
            f"{path} is of a run over several machines, whose times are no measurement: compare runs on one machine"
        )
    try:
        run = typed(Run, _reduced(document))
    except WrongContent as error:
        raise BadResult(f"{path} holds no run: {error.reason}") from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BadResult(f"{path} holds no run: {type(error).__name__}: {error}") from error
    if not run.passed:
        raise BadResult(f"{path} is of a run in which no scenario passed: there is nothing to compare")
    return run


def _reduced(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Run holds, as JSON values."""
    parallel = document["parallel"]
    return {
        "facts": {name: document[name] for name in RunFacts.__slots__},
        "seconds": document["seconds"],
        "scenarios": [_scenario(each) for each in document["scenarios"]],
        "reloads": [_reload(each) for each in document["reloads"]],
        "parallel": None
        if parallel is None
        else {
            "pods": parallel["pods"],
            "lost": parallel["lost"],
            "workers": [_workers(each) for each in parallel["workers"]],
        },
    }


def _workers(workers: Mapping[str, Any]) -> dict[str, Any]:
    rates = [each["reloads_per_second"] for each in workers["rounds"]]
    return {"workers": workers["workers"], "rates": rates}


def _scenario(scenario: Mapping[str, Any]) -> dict[str, Any]:
    flows = [flow["delays"] for phase in scenario["traffic"] for flow in phase["flows"]]
    worst = [delays["worst_ns"] / 1e9 for delays in flows if delays["count"]]
    kept = {name: scenario[name] for name in ("name", "outcome", "lost")}
    return kept | {"worst_delay": max(worst, default=None)}


def _reload(reload: Mapping[str, Any]) -> dict[str, Any]:
    steps: dict[str, float] = {}
    for span in reload["spans"]:
        steps[span["step"]] = steps.get(span["step"], 0.0) + span["duration_ns"] / 1e9
    return {"scenario": reload["scenario"], "subject": reload["subject"], "steps": steps}
