"""Applying a plan: every step timed; everything undone in reverse when one fails or the reload is cancelled."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from datapath.errors import Cancelled, ReloadlabError
from datapath.reload.outcome import Outcome, Span
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace
from datapath.timing import Interval


class Observer(Protocol):
    """Somebody who looks on between the steps: a gate, a fault, a progress display. What it raises fails the reload."""

    def before(self, step: Step, work: Workspace) -> None: ...

    def after(self, step: Step, work: Workspace) -> None: ...


class RollbackFailed(ReloadlabError):
    """A reload failed and not all of it could be undone: `failures` says what; `cause` is what came first."""

    def __init__(self, cause: BaseException, failures: list[tuple[Step, Exception]]) -> None:
        undone = "; ".join(f"{step.name} {step.target}: {error}" for step, error in failures)
        super().__init__(f"{cause or type(cause).__name__}; and the rollback is incomplete: {undone}")
        self.cause = cause
        self.failures = tuple(failures)


def apply(plan: Plan, work: Workspace, *, observer: Observer | None = None) -> Outcome:
    """Apply a plan. On any exception every step begun so far is undone, the last one first, and the exception goes on.

    One that comes after the commit finds the reload done: it goes on as well, and nothing is undone.

    The caller owns `work` and closes it afterwards: until then the programs that were replaced stay loaded, so that
    they can be attached again.
    """
    begun: list[Step] = []
    spans: list[Span] = []
    try:
        for step in plan.steps:
            if work.cancel.is_set():
                raise Cancelled(f"reload of {plan.subject} cancelled before: {step.name} {step.target}")
            if observer is not None:
                observer.before(step, work)
            begun.append(step)
            spans.append(_timed(step, work))
            if observer is not None:
                observer.after(step, work)
    except BaseException as cause:
        if work.committed:
            # The old program arrays are let go, and emptied: there is no way back, and no need of one.
            raise
        failures = _undo(begun, work)
        if not failures:
            raise
        incomplete = RollbackFailed(cause, failures)
        if isinstance(cause, Exception):
            raise incomplete from cause
        cause.add_note(str(incomplete))  # Ctrl-C ends more than this reload
        raise
    return Outcome(
        subject=plan.subject,
        endpoint_id=plan.endpoint_id,
        generation=plan.generation,
        attached=tuple(work.attached.values()),
        migrated=tuple(work.migrated),
        warnings=plan.warnings + tuple(work.warnings),
        spans=tuple(spans),
    )


def _timed(step: Step, work: Workspace) -> Span:
    start = time.monotonic_ns()
    step.apply(work)
    end = time.monotonic_ns()
    helpers = tuple(work.take_intervals())
    return Span(step.name, step.target, Interval(threading.get_native_id(), start, end), helpers)


def _undo(begun: list[Step], work: Workspace) -> list[tuple[Step, Exception]]:
    """Undo as much as can be undone: a step that refuses does not keep the others from being undone."""
    failures: list[tuple[Step, Exception]] = []
    for step in reversed(begun):
        try:
            step.undo(work)
        except (ReloadlabError, OSError) as error:
            failures.append((step, error))
    return failures
