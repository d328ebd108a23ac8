"""Applying a plan: every step timed; everything undone in reverse when one fails or the reload is cancelled."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from datapath.base.timing import Interval
from datapath.errors import Cancelled, ReloadlabError, printable
from datapath.reload.interrupts import signals_held_back
from datapath.reload.outcome import Outcome, Span
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace


class Observer(Protocol):
    """Somebody who looks on between the steps: a gate, a fault, a progress display. What it raises fails the reload."""

    def before(self, step: Step, work: Workspace) -> None: ...

    def after(self, step: Step, work: Workspace) -> None: ...


class RollbackFailed(ReloadlabError):
    """A reload failed and not all of it could be undone: `failures` says what; `cause` is what came first."""

    def __init__(self, cause: BaseException, failures: list[tuple[Step, BaseException]]) -> None:
        undone = "; ".join(f"{step.name} {printable(step.target)}: {_said(error)}" for step, error in failures)
        super().__init__(f"{_said(cause)}; and the rollback is incomplete: {undone}")
        self.cause = cause
        self.failures = tuple(failures)


def apply(plan: Plan, work: Workspace, *, observer: Observer | None = None) -> Outcome:
    """Apply a plan. On any exception every step begun so far is undone, the last one first, and the exception goes on.

    Ctrl-C during the rollback is delivered when all is undone. An exception after the commit undoes nothing, and goes
    on: the reload is done.

    The caller owns `work` and closes it afterwards: until then the programs that were replaced stay loaded, so that
    they can be attached again.
    """
    begun: list[Step] = []
    spans: list[Span] = []
    try:
        for step in plan.steps:
            if work.cancel.is_set():
                raise Cancelled(f"reload of {plan.subject} cancelled before: {step.name} {printable(step.target)}")
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
        _roll_back(begun, work, cause)
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
    return Span(step.name, printable(step.target), Interval(threading.get_native_id(), start, end), helpers)


def _roll_back(begun: list[Step], work: Workspace, cause: BaseException) -> None:
    """Undo all steps; raises if something could not be undone, or to interrupt more than this reload."""
    failures: list[tuple[Step, BaseException]] = []
    try:
        with signals_held_back():
            _undo(begun, work, failures)
    except BaseException as interrupt:
        if failures:
            interrupt.add_note(str(RollbackFailed(cause, failures)))
        raise interrupt from cause
    if not failures:
        return
    incomplete = RollbackFailed(cause, failures)
    # Ctrl-C ends more than this reload: it stays what it is.
    for error in (cause, *(error for _, error in failures)):
        if not isinstance(error, Exception):
            error.add_note(str(incomplete))
            raise error
    raise incomplete from cause


def _undo(begun: list[Step], work: Workspace, failures: list[tuple[Step, BaseException]]) -> None:
    """Undo as much as can be undone: whatever a step raises does not keep the others from being undone."""
    for step in reversed(begun):
        try:
            step.undo(work)
        except BaseException as error:  # noqa: BLE001 - raised when the others are undone
            failures.append((step, error))


def _said(error: BaseException) -> str:
    return "; ".join((str(error) or type(error).__name__, *getattr(error, "__notes__", ())))
