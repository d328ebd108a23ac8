"""The runner: scenarios are collected once, and each fault is tried by processes that are forked from there.

It is a pytest plugin that takes the place of the loop over the tests. A forked process inherits what is imported and
collected, which takes longer than most faults need to be caught.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from datapath.errors import ReloadlabError
from lab.corpus.course import NEEDED, Course, ordered
from lab.corpus.fault import Fault
from lab.corpus.trial import APPLIED, RESULT, RUNNING, run_part
from lab.corpus.verdict import Catch, Control, How, Trial
from lab.node import registry
from lab.system.process import Process, end_with_parent, fork
from lab.system.signals import SIGNALS
from lab.watch.kernel_drops import DropsUnavailable, tracing

_POLL_MS = 200
_GRACE = 20.0
"""Seconds that an interrupted process has to take its nodes down."""


class CorpusError(ReloadlabError):
    """The scenarios could not be collected."""


@dataclass(slots=True)
class _Part:
    """A part of a trial under way in a process of its own, since `started`.

    `deadline` is when the scenario that runs now counts as hung, `scenario` its name.
    """

    course: Course
    directory: Path
    process: Process
    started: float
    deadline: float
    scenario: str = ""
    hung: bool = False

    def signal(self, number: int) -> None:
        """Send a signal to the process and those that it has started; to it alone as long as it has no session."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            self.process.signal(number)

    def reap(self) -> int:
        """Wait for the end; return the exit status as os.waitstatus_to_exitcode does."""
        status = self.process.wait()
        self.process.close()
        return status


class Runner:
    """Tries faults on the scenarios that pytest collects, `workers` at a time; `on_trial` hears of each at its end.

    Scenarios in which something failed are run once more without any fault, as a control: `on_control` hears of those.
    `patience` are the seconds that a single scenario may take before it counts as hung, `needed` how often it must fail
    to have caught a fault. Everything is kept in the empty directory `directory`.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        directory: Path,
        *,
        workers: int,
        patience: float,
        needed: int = NEEDED,
        on_trial: Callable[[Fault, Trial], object],
        on_control: Callable[[Control], object],
    ) -> None:
        self._faults = faults
        self._directory = directory
        self._workers = workers
        self._patience = patience
        self._needed = needed
        self._on_trial = on_trial
        self._on_control = on_control
        self._parts: list[_Part] = []
        self._failed: dict[str, None] = {}
        self._directories: dict[Course, Path] = {}
        self._broken: list[str] = []
        self._error: BaseException | None = None

    def run(self, suites: Sequence[str]) -> None:
        """Have pytest collect the scenarios, and try the faults on them. `suites` are its arguments.

        CorpusError if they cannot be collected. pytest's environment does not count, it would change the call.
        """
        for name in [name for name in os.environ if name.startswith("PYTEST_")]:
            del os.environ[name]
        left_out = [word for name in ("xdist", "cacheprovider") for word in ("-p", f"no:{name}")]
        code = pytest.main(["-p", "reloadlab.short_names", "-s", *left_out, *suites], plugins=[self])
        if self._error is not None:
            raise self._error
        if self._broken:
            raise CorpusError("\n".join(self._broken))
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            raise CorpusError(f"pytest ended with exit code {int(code)}")

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Have pytest itself say nothing; what its terminal plugin declares is still needed."""
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be collected."""
        if report.failed:
            self._broken.append(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try every fault, in place of pytest's own loop."""
        if self._broken:
            return True
        if not session.items:
            self._error = CorpusError("there is no scenario to try the faults on")
            return True
        try:
            self._run(session)
        except BaseException as error:  # noqa: BLE001 - pytest would make an exit code of it: run() raises it
            self._error = error
        return True

    def _run(self, session: pytest.Session) -> None:
        # Each process would make it for itself, in a second. If it cannot be made, they say why.
        with suppress(DropsUnavailable):
            tracing()
        try:
            courses = [Course(each, ordered(each, session.items), needed=self._needed) for each in self._faults]
            self._try(session, courses)
            self._try(session, [Course(None, (scenario,)) for scenario in self._failed])
        except BaseException:
            self._stop()
            raise

    def _try(self, session: pytest.Session, courses: Sequence[Course]) -> None:
        waiting = list(courses)[::-1]
        while waiting or self._parts:
            while waiting and len(self._parts) < self._workers:
                self._start(session, waiting.pop())
            waiting += self._look()

    def _start(self, session: pytest.Session, course: Course) -> None:
        templates = self._directory / "templates"
        templates.mkdir(exist_ok=True)
        directory = self._directories.setdefault(course, self._directory / str(len(self._directories)))
        directory.mkdir(exist_ok=True)
        for name in (RUNNING, APPLIED, RESULT):
            (directory / name).unlink(missing_ok=True)
        parent, now = os.getpid(), time.monotonic()

        def keep(process: Process) -> None:
            self._parts.append(_Part(course, directory, process, now, now + self._patience + _GRACE))

        fork(lambda: _be_child(session, course, directory, templates, parent), keep)

    def _look(self) -> list[Course]:
        """Wait a moment; end processes whose scenario does not. Return trials that go on in another process."""
        poll = select.poll()
        for part in self._parts:
            poll.register(part.process.pidfd, select.POLLIN)
        ended = {descriptor for descriptor, _ in poll.poll(_POLL_MS)}
        unfinished: list[Course] = []
        for part in list(self._parts):
            if part.process.pidfd not in ended:
                self._watch(part)
                continue
            self._parts.remove(part)
            course = part.course
            course.note(_trial_of(part, part.reap()))
            if course.next_scenarios():
                unfinished.append(course)
                continue
            if course.fault is None:
                self._on_control(Control(course.scenarios[0], course.trial))
            else:
                self._failed |= dict.fromkeys(course.trial.failed)
                self._on_trial(course.fault, course.trial)
        return unfinished

    def _watch(self, part: _Part) -> None:
        now, running = time.monotonic(), _text(part.directory / RUNNING)
        if running != part.scenario:
            part.scenario, part.deadline = running, now + self._patience
        elif now > part.deadline:
            part.signal(signal.SIGKILL if part.hung else signal.SIGINT)
            part.hung, part.deadline = True, now + _GRACE

    def _stop(self) -> None:
        """Have all processes take their nodes down, and kill those that take too long."""
        for part in self._parts:
            part.signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE
        for part in self._parts:
            try:
                part.process.wait(max(deadline - time.monotonic(), 0))
            except TimeoutError:
                part.signal(signal.SIGKILL)
            part.reap()
        self._parts.clear()


def _be_child(session: pytest.Session, course: Course, directory: Path, templates: Path, parent: int) -> None:
    """Try a fault, in the forked process, and leave; at once if the parent has gone already."""
    code = 1
    try:
        os.setsid()
        end_with_parent(signal.SIGINT)
        if os.getppid() != parent:
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run_part(session, course.fault, course.next_scenarios(), directory, templates)
        code = 0
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    finally:
        os._exit(code)


def _trial_of(done: _Part, code: int) -> Trial:
    """Return what a process has found until its end, and how it ended; what it has left of labs is removed."""
    directory = done.directory
    result = _text(directory / RESULT)
    part = Trial.from_json(json.loads(result)) if result else Trial()
    part = replace(part, seconds=time.monotonic() - done.started)
    if code == 0 and not done.hung:
        return part
    registry.sweep()
    scenario, said = _text(directory / RUNNING), _text(directory / "log").strip()
    if not scenario or (code > 0 and not done.hung):
        end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return replace(part, error=f"the process ended with {end} in {scenario or 'no scenario'}:\n{said}")
    how, text = (How.HUNG, said) if done.hung else (How.DIED, f"killed by {signal.Signals(-code).name}: {said}")
    catch, applied = Catch(scenario, how, text=text), (directory / APPLIED).exists()
    caught = applied or done.course.fault is None
    return replace(
        part,
        applied=tuple(dict.fromkeys((*part.applied, *([scenario] if applied else ())))),
        scenarios=tuple(dict.fromkeys((*part.scenarios, scenario))),
        catch=part.catch or (catch if caught else None),
        false_alarm=part.false_alarm or (None if caught else catch),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
