"""The trial of one fault: in a process of its own, scenario by scenario, until the first that fails."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from datapath.errors import CompileError, ReloadlabError, VerifierError
from lab.corpus.fault import Fault
from lab.corpus.verdict import Catch, How, Trial
from lab.scenario.gate import GateNeverFired
from lab.scenario.verdict import InvariantsViolated, NoVerdict
from lab.scenario.watched import Watched
from lab.watch.violation import Violation

if TYPE_CHECKING:
    from lab.scenario.marks import MarkOptions
    from lab.scenario.scenario import ClusterScenario, Scenario

RUNNING, APPLIED, RESULT = "running", "applied", "result.json"
"""Files of a trial's directory: the scenario that runs now, whether the fault took effect, and the result."""

FIRST = ("test_hitless", "test_host.py", "test_rollback", "switched", "test_pods", "test_two_nodes")
"""Scenarios that find much in little time: run before those that no hint of the fault names."""

_STEP = re.compile(r'(?:during|between|after) ".*?(?= \(generation)')
"""Where a finding says at which step of which reload it was."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process tries: a fault (None: no fault, the control), on all scenarios or on these."""

    fault: Fault | None
    scenarios: tuple[str, ...] = ()

    def ordered(self, items: Iterable[pytest.Item]) -> list[pytest.Item]:
        """Return the scenarios to run: first those that the fault's hints name, in the order of the hints."""
        hints = (*(self.fault.only if self.fault is not None else ()), *FIRST)

        def rank(item: pytest.Item) -> int:
            return next((number for number, hint in enumerate(hints) if hint in item.nodeid), len(hints))

        return sorted((item for item in items if item.nodeid in self.scenarios or not self.scenarios), key=rank)


class Injector:
    """A plugin for one process: puts a fault into every scenario, and notes the first that fails."""

    def __init__(self, fault: Fault | None, directory: Path, templates: Path) -> None:
        self._fault = fault
        self._templates = templates
        self._directory = directory
        self._library: Path | None = None
        self._running: list[Watched] = []
        self.catch: Catch | None = None

    def begin(self, scenario: str) -> None:
        """Forget what the scenario before has noted."""
        self._running.clear()
        (self._directory / RUNNING).write_text(scenario)
        (self._directory / APPLIED).unlink(missing_ok=True)

    @property
    def applied(self) -> bool:
        """Whether the fault took effect in this scenario."""
        return (self._directory / APPLIED).exists()

    @property
    def sent(self) -> int:
        """Packets of this scenario's traffic."""
        return sum(running.sent for running in self._running)

    def pytest_reloadlab_options(self, options: MarkOptions) -> None:
        """Build the scenario's programs from the patched C, where the fault is in the C; compile each program once."""
        # A scenario that wants templates of its own removes them: not those of all trials.
        if options.scenario["templates"] is not None:
            options.scenario["templates"] = self._templates
        if self._fault is None or not self._fault.patches:
            return
        if self._library is None:
            self._library = self._fault.patched(self._directory)
        options.scenario["library"] = self._library
        self._note_applied()

    def pytest_reloadlab_loaded(self, running: Scenario | ClusterScenario) -> None:
        """Give the agents their fault."""
        self._running.append(running)
        if self._fault is not None:
            for agent in running.agents:
                self._fault.put_into(agent, self._note_applied)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note a failure."""
        report = yield
        if report.failed and call.excinfo is not None and self.catch is None:
            error = call.excinfo.value
            if not self._says_nothing(error):
                self.catch = _catch(item.nodeid, error, [v for running in self._running for v in _violations(running)])
        return report

    def _says_nothing(self, error: BaseException) -> bool:
        """Tell whether a failure is no finding about packets.

        That is so for a gate at a step that the fault has taken out of the plan, for traffic that could see nothing,
        and for C that is not even loaded.
        """
        patched = self._fault is not None and bool(self._fault.patches)
        refused = patched and isinstance(error, CompileError | VerifierError)
        return refused or isinstance(error, GateNeverFired | NoVerdict)

    def _note_applied(self) -> None:
        # A file, because a reload may be another process's.
        (self._directory / APPLIED).touch()


def _catch(scenario: str, error: BaseException, violations: Sequence[Violation]) -> Catch:
    invariants = tuple(sorted({violation.invariant for violation in violations}))
    text = str(error) if isinstance(error, ReloadlabError) else f"{type(error).__name__}: {error}"
    if isinstance(error, InvariantsViolated):
        how = How.INVARIANT
    else:
        how = How.ASSERTION if isinstance(error, AssertionError | pytest.fail.Exception) else How.RELOAD
        text = "\n".join((text, *map(str, violations)))
    step = _STEP.search(text)
    return Catch(scenario, how, invariants, "" if step is None else step[0], text)


def _violations(running: Watched) -> list[Violation]:
    """Return what does not hold of a scenario that has failed, whether or not it had come to its checks."""
    with suppress(InvariantsViolated, NoVerdict):
        running.finish()
    return running.violations


def run_trial(session: pytest.Session, task: Task, directory: Path, templates: Path) -> None:
    """Run the session's scenarios with a fault until one catches it; write the result.

    A scenario that fails although the fault has not taken effect in it catches nothing: the others follow.
    `directory` is the trial's own, `templates` what all trials have compiled. The session ends with it: a process does
    this once.
    """
    injector = Injector(task.fault, directory, templates)
    session.config.pluginmanager.register(injector)
    items = task.ordered(session.items)
    started, ran, applied, sent = time.monotonic(), list[str](), list[str](), 0
    false_alarm: Catch | None = None
    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            injector.begin(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            ran.append(item.nodeid)
            applied += [item.nodeid] if injector.applied else []
            sent += injector.sent
            if injector.catch is not None and (task.fault is None or injector.applied):
                break
            false_alarm, injector.catch = false_alarm or injector.catch, None
    finally:
        session.config.hook.pytest_sessionfinish(session=session, exitstatus=pytest.ExitCode.OK)
    seconds = round(time.monotonic() - started, 3)
    trial = Trial(tuple(applied), tuple(ran), sent, seconds, injector.catch or false_alarm)
    (directory / RESULT).write_text(json.dumps(trial.to_json()))
