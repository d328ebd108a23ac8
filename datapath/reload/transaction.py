"""Applying a plan: every step timed; everything undone in reverse when one fails or the reload is cancelled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from datapath.base.timing import Interval
from datapath.errors import Cancelled, ReloadlabError, printable
from datapath.reload.interrupts import signals_held_back
from datapath.reload.outcome import FailedReload, Outcome, Span
from datapath.reload.step import Plan, Step
from datapath.reload.workspace import Workspace


class Observer(Protocol):
    """Somebody who looks on between the steps: a gate, a fault, a progress display. What it raises fails the reload."""

    def before(self, step: Step, work: Workspace) -> None: ...

    def after(self, step: Step, work: Workspace) -> None: ...


@dataclass(frozen=True, slots=True)
class Observers:
    """Several observers in the place of one: each step is shown to all of them, in their order."""

    all: tuple[Observer, ...]

    def before(self, step: Step, work: Workspace) -> None:
        for observer in self.all:
            observer.before(step, work)

    def after(self, step: Step, work: Workspace) -> None:
        for observer in self.all:
            observer.after(step, work)


OnFailure = Callable[[FailedReload], object]


class RollbackFailed(ReloadlabError):
    """A reload failed and not all of it could be undone: `failures` says what; `cause` is what came first."""

    def __init__(self, cause: BaseException, failures: list[tuple[Step, BaseException]]) -> None:
        undone = "; ".join(f"{step.name} {printable(step.target)}: {_said(error)}" for step, error in failures)
        super().__init__(f"{_said(cause)}; and the rollback is incomplete: {undone}")
        self.cause = cause
        self.failures = tuple(failures)


def apply(
    plan: Plan, work: Workspace, *, observer: Observer | None = None, on_failure: OnFailure | None = None
) -> Outcome:
    """Apply a plan. On any exception every step begun so far is undone, the last one first, and the exception goes on.

    Ctrl-C during the rollback, or right before it, is delivered when all is undone. An exception after the commit
    undoes nothing, and goes on: the reload is done. `on_failure` hears of a failed reload when it is undone.

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
            _apply_timed(step, work, spans)
            if observer is not None:
                observer.after(step, work)
    except BaseException as cause:
        start = 0
        try:
            start = time.monotonic_ns()
            # After the commit the old program arrays are let go, and emptied: there is no way back, and no need of one.
            if not work.committed:
                _roll_back(begun, work, cause)
        except BaseException as interrupt:
            # A second Ctrl-C, before signals were held back: nothing may be undone yet.
            start = start or time.monotonic_ns()
            if not work.committed and begun:
                _roll_back(begun, work, interrupt)
            raise
        finally:
            if on_failure is not None:
                on_failure(_failed(plan, work, spans, start, cause))
        raise
    return _outcome(plan, work, spans)


def _outcome(plan: Plan, work: Workspace, spans: list[Span]) -> Outcome:
    """Return what a reload has done that has passed its commit."""
    return Outcome(
        subject=plan.subject,
        endpoint_id=plan.endpoint_id,
        generation=plan.generation,
        attached=tuple(work.attached.values()),
        migrated=tuple(work.migrated),
        warnings=plan.warnings + tuple(work.warnings),
        spans=tuple(spans),
        loaded=tuple(item.loaded for item in work.objects.values() if item.loaded is not None),
    )


def _apply_timed(step: Step, work: Workspace, spans: list[Span]) -> None:
    """Apply a step, and note its span, also if it fails."""
    start = time.monotonic_ns()
    try:
        step.apply(work)
    finally:
        interval = Interval(threading.get_native_id(), start, time.monotonic_ns())
        spans.append(Span(step.name, printable(step.target), interval, tuple(work.take_intervals())))


def _failed(plan: Plan, work: Workspace, spans: list[Span], start_ns: int, cause: BaseException) -> FailedReload:
    """Return the record of a reload that failed, and was undone since `start_ns`, or passed its commit."""
    undone = None if work.committed else Interval(threading.get_native_id(), start_ns, time.monotonic_ns())
    done = _outcome(plan, work, spans) if work.committed else None
    return FailedReload(
        *(plan.subject, plan.endpoint_id, plan.generation, tuple(spans), undone, _said(cause), done),
        attached=tuple(work.attached.values()),
    )


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
    """Undo as much as can be undone: whatever a step raises does not keep the others from being undone.

    What is undone is taken from `begun`.
    """
    while begun:
        step = begun[-1]
        try:
            step.undo(work)
        except BaseException as error:  # noqa: BLE001 - raised when the others are undone
            failures.append((step, error))
        begun.pop()


def _said(error: BaseException) -> str:
    return "; ".join((str(error) or type(error).__name__, *getattr(error, "__notes__", ())))
