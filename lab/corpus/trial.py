"""A part of the trial of one fault: in a process of its own, scenario by scenario, until the first that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
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

_STEP = re.compile(r'(?:during|between|after) ".*?(?= \(generation)')
"""Where a finding says at which step of which reload it was."""


class Injector:
    """A plugin for one process: puts a fault into every scenario, and notes the first that fails."""

    def __init__(self, fault: Fault | None, directory: Path, templates: Path) -> None:
        self._fault = fault
        self._templates = templates
        self._directory = directory
        self._library = fault.patched(directory) if fault is not None and fault.patches else None
        self._running: list[Watched] = []
        self.catch: Catch | None = None
        self.saw_nothing = False
        self.error = ""

    def begin(self, scenario: str) -> None:
        """Forget what the scenario before has noted."""
        self._running.clear()
        self.catch = None
        self.saw_nothing = False
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
        if self._library is not None:
            options.scenario["library"] = self._library
            # Unless it is refused, which is an error of the fault, the scenario begins with these programs.
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
            refusal = self._refusal(error)
            if refusal is not None:
                self.error = self.error or f"{item.nodeid}: {refusal}"
            elif isinstance(error, NoVerdict):
                self.saw_nothing = True
            # A gate at a step that the fault has taken out of the plan is no finding about packets.
            elif not isinstance(error, GateNeverFired):
                self.catch = _catch(item.nodeid, error, [v for running in self._running for v in _violations(running)])
        return report

    def _refusal(self, error: BaseException | None) -> CompileError | VerifierError | None:
        """Return why the patched C is not even loaded, if it is for that that a scenario failed."""
        while self._library is not None and error is not None:
            if isinstance(error, CompileError | VerifierError):
                return error
            error = error.__cause__
        return None

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
    # A fault may leave what the checks themselves cannot read: then there is what they had found until then.
    with suppress(ReloadlabError):
        running.finish()
    return running.violations


def run_part(
    session: pytest.Session, fault: Fault | None, scenarios: Sequence[str], directory: Path, templates: Path
) -> None:
    """Run scenarios of the session with a fault, in this order, until one catches it; write the result of each.

    A scenario that fails although the fault has not taken effect in it catches nothing: the others follow.
    `directory` is the trial's own, `templates` what all trials have compiled. The session ends with it: a process does
    this once.
    """
    injector = Injector(fault, directory, templates)
    session.config.pluginmanager.register(injector)
    items = {item.nodeid: item for item in session.items}
    chosen = [items[name] for name in scenarios]
    part = Trial()
    try:
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            injector.begin(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            part = _with(part, item.nodeid, injector, is_control=fault is None)
            _write(directory / RESULT, part)
            if part.catch is not None or part.error:
                break
    finally:
        session.config.hook.pytest_sessionfinish(session=session, exitstatus=pytest.ExitCode.OK)


def _with(part: Trial, scenario: str, injector: Injector, *, is_control: bool) -> Trial:
    """Return the part with one more scenario, which has just been run."""
    counts = is_control or injector.applied
    return replace(
        part,
        applied=(*part.applied, scenario) if injector.applied else part.applied,
        scenarios=(*part.scenarios, scenario),
        blind=(*part.blind, scenario) if injector.saw_nothing and counts else part.blind,
        sent=part.sent + injector.sent,
        catch=injector.catch if counts else None,
        false_alarm=part.false_alarm or (None if counts else injector.catch),
        error=injector.error,
    )


def _write(path: Path, part: Trial) -> None:
    """Write it as a whole: the process may be killed at any time."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(part.to_json()))
    new.replace(path)
