"""What the checks of the scenarios cost: a plugin for pytest that times each of them, in every scenario.

    sudo .venv/bin/python -m pytest -p tests.check_cost -n 2 scenarios

At the end it prints, for each check and for what starts and ends a watch, seconds of time and of processor time over
all scenarios, without those of the checks that it calls. Times of another thread or process are not in it.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from lab.scenario import watched
from lab.scenario.traffic import ScenarioTraffic
from lab.watch import invariants
from lab.watch.drops import Drops
from lab.watch.journal import Journal
from lab.watch.kernel_log import KernelLog

WATCH = (
    (watched, "baseline"),
    (invariants, "own_descriptors"),
    (invariants, "object_files"),
    (invariants, "read_objects"),
    (invariants, "take"),
    (ScenarioTraffic, "start"),
    (ScenarioTraffic, "begin"),
    (ScenarioTraffic, "pause"),
    (Drops, "__enter__"),
    (Drops, "read"),
    (Drops, "__exit__"),
    (Journal, "__enter__"),
    (Journal, "stop"),
    (KernelLog, "__enter__"),
    (watched, "coverage"),
)
"""What else is done only so that the checks can see."""

_OUTPUT = "check_cost"


class _Costs:
    """Seconds and calls by name; what is called inside another is counted there and not here."""

    def __init__(self) -> None:
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.processor: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self.scenarios = 0
        self._inside = [[0.0, 0.0]]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            wall, processor = time.perf_counter(), time.thread_time()
            self._inside.append([0.0, 0.0])
            try:
                return function(*args, **options)
            finally:
                spent = (time.perf_counter() - wall, time.thread_time() - processor)
                inner = self._inside.pop()
                for kind, (total, within, seconds) in enumerate(
                    zip(spent, inner, (self.wall, self.processor), strict=True)
                ):
                    self._inside[-1][kind] += total
                    seconds[name] += total - within
                self.calls[name] += 1

        return call

    def add(self, other: dict[str, Any]) -> None:
        for name in ("wall", "processor", "calls"):
            for label, value in other[name].items():
                getattr(self, name)[label] += value
        self.scenarios += other["scenarios"]

    def exported(self) -> dict[str, Any]:
        return {
            **{name: dict(getattr(self, name)) for name in ("wall", "processor", "calls")},
            "scenarios": self.scenarios,
        }


class _Plugin:
    def __init__(self) -> None:
        self.costs = _Costs()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.costs.scenarios += report.when == "call"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput[_OUTPUT] = self.costs.exported()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # The scenarios of the workers are reported here as well.
        self.costs.add({**node.workeroutput[_OUTPUT], "scenarios": 0})

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        costs = self.costs
        terminalreporter.section(f"checks of {costs.scenarios} scenarios")
        terminalreporter.line(f"{'':32}{'calls':>8}{'seconds':>10}{'processor':>11}")
        rows = [*sorted(costs.wall.items(), key=lambda row: -row[1]), ("all", sum(costs.wall.values()))]
        for name, seconds in rows:
            processor = costs.processor[name] if name != "all" else sum(costs.processor.values())
            terminalreporter.line(f"{name:32}{costs.calls[name] or '':>8}{seconds:10.2f}{processor:11.2f}")


def pytest_configure(config: pytest.Config) -> None:
    """Put a timer around every check."""
    plugin = _Plugin()
    checks = [(module, name) for module in (invariants, watched) for name in vars(module) if name.startswith("check_")]
    done: dict[int, Callable[..., Any]] = {}
    for owner, name in (*WATCH, *checks):
        function = getattr(owner, name)
        label = f"{owner.__name__}.{name}" if isinstance(owner, type) else name
        if id(function) not in done:
            done[id(function)] = plugin.costs.timed(label, function)
        setattr(owner, name, done[id(function)])
    config.pluginmanager.register(plugin, "check-cost")
