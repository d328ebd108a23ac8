"""A pytest plugin that keeps the records of a session: in the process that hears of every test, never in a worker.

With pytest-xdist that is the controller. It learns from xdist that a worker died, and while running which test.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from lab.scenario.records import (
    END,
    ERROR,
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_RUN,
    PASSED,
    RUNNING,
    SKIPPED,
    WHERE,
    Record,
    write,
)
from lab.system.plain import plain


class Recorder:
    """Writes a record per test into `directory`: when it is collected, when it begins, when it ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records: dict[str, Record] = {}
        self._end = FINISHED

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what was collected in this process."""
        self._collected(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Iterable[str]) -> None:
        """Note what a worker collected; all of them collect the same."""
        self._collected(ids)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is an error of its own."""
        if report.failed:
            self._keep(Record(report.nodeid or "collection", ERROR, message=report.longreprtext))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test has begun; one that begins again, as its machine was lost, has not passed before its end."""
        record = self._records.get(nodeid, Record(nodeid))
        self._keep(replace(record, outcome=RUNNING) if record.outcome == PASSED else record.worsened(RUNNING))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note how a phase of a test ended. Only when it is torn down is a test known to have passed."""
        outcome = _outcome(report)
        record = self._records.get(report.nodeid, Record(report.nodeid))
        details: str | None = getattr(report, "reloadlab", None)
        if details is not None:
            record = replace(record, **json.loads(details))
        # After what the worker says: which machine it is on is not for it to tell.
        record = replace(record, **getattr(report, WHERE, {"kernel": os.uname().release}))
        if report.when == "call" or not report.passed:
            record = replace(record, seconds=max(record.seconds, report.duration))
        message = "" if report.passed else _message(report)
        record = record.worsened(outcome, message)
        self._records[report.nodeid] = record
        if outcome in (FAILED, ERROR) or report.when == "teardown":
            self._keep(record)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell Ctrl-C from what pytest and xdist raise to stop by themselves."""
        if excinfo.type is KeyboardInterrupt:
            self._end = INTERRUPTED

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Note that the session came to its end: what has no outcome by now has not run."""
        self._writing(lambda: (self._directory / END).write_text(self._end))

    def _collected(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._records:
                self._keep(Record(name, NOT_RUN))

    def _keep(self, record: Record) -> None:
        self._records[record.name] = record
        self._writing(lambda: write(self._directory, record))

    def _writing(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            pytest.exit(f"--reloadlab-record {self._directory}: {error.strerror}", pytest.ExitCode.INTERNAL_ERROR)


def _outcome(report: pytest.TestReport) -> str:
    if report.failed:
        return FAILED if report.when == "call" else ERROR
    if report.skipped:
        return SKIPPED
    return PASSED if report.when == "call" else RUNNING


def _message(report: pytest.TestReport) -> str:
    expected: str | None = getattr(report, "wasxfail", None)
    if report.skipped and expected is not None:
        # What it raised is no reason: that it was expected is.
        return plain(f"Skipped: expected to fail{f': {expected}' if expected else ''}", keep="\n\t")
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    # Not longreprtext, which begins with the worker that ran it.
    return plain(str(report.longrepr).strip(), keep="\n\t")
