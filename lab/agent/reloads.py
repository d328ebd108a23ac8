"""Reloads of many endpoints: by worker processes or here, where one failure does not keep the others from theirs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from datapath.build.headers import template_endpoint
from datapath.errors import ReloadlabError
from datapath.reload.outcome import FailedReload, Outcome
from datapath.reload.plans import OVERLAY_SUBJECT, XDP_SUBJECT
from datapath.reload.transaction import Observer
from lab.loaders.family import none_left
from lab.loaders.protocol import NotSupported
from lab.system.forkpool import fork_map

if TYPE_CHECKING:
    from lab.agent.reloader import Reloader

R = TypeVar("R")

_PATIENCE = 10.0
"""How many times as long a loader has to answer that is started by a process whose calls are stopped."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A reload that failed; the old state lives on. `reload` says how far it came, if a worker process did it."""

    subject: str
    error: ReloadlabError
    reload: FailedReload | None = None


def reload_one_by_one(
    reloader: Reloader, subjects: Sequence[str], *, cancel: threading.Event | None, observer: Observer | None
) -> list[Outcome | Failure]:
    """Reload in the calling process; `observer` looks on."""
    return [_attempt(reloader, subject, cancel, observer) for subject in subjects]


def reload_by_workers(
    reloader: Reloader,
    subjects: Sequence[str],
    *,
    workers: int,
    cancel: threading.Event | None,
    on_worker: Callable[[int], object] | None,
) -> list[Outcome | Failure]:
    """Reload by forked processes, each with its own copy of `reloader`. `on_worker` is called in each, with its id.

    If one was killed, so is what its loader had started.
    """
    _prepare(reloader, subjects, cancel)

    @contextmanager
    def worker(
        on_start: Callable[[int], object], cancelled: threading.Event
    ) -> Iterator[Callable[[str], Outcome | Failure]]:
        if on_worker is not None:
            on_worker(os.getpid())
        spare = len(os.sched_getaffinity(0)) // workers
        failed: list[FailedReload] = []
        # Whoever looks on at reloads in the parent process must not hear of ours in this copy of it.
        reloader.on_reload, reloader.on_failure = None, failed.append

        def reload(subject: str) -> Outcome | Failure:
            failed.clear()
            result = _attempt(reloader, subject, cancelled)
            return replace(result, reload=failed[0]) if failed and isinstance(result, Failure) else result

        with reloader.as_worker(verifiers=max(spare, 1), on_start=on_start), reloader.loader.many():
            yield reload

    with none_left() as on_start:
        results = fork_map(partial(worker, on_start), subjects, workers=workers, cancel=cancel)
    return [
        Failure(subject, result) if isinstance(result, ReloadlabError) else result
        for subject, result in zip(subjects, results, strict=True)
    ]


def do_in_worker(
    reloader: Reloader,
    do: Callable[[threading.Event], R],
    *,
    on_worker: Callable[[], object],
    cancel: threading.Event | None = None,
) -> R:
    """Do something with a copy of `reloader` in one forked process, which calls `on_worker` first.

    `do` gets the event that is set if the process is to stop: by `cancel`, or by a SIGTERM to it alone.
    What was reloaded there is told to those who listen to `reloader`. Raises what `do` raised, WorkerDied if the
    process was killed: what its loader had started is killed then.
    """
    reloader.loader.stop_idle_threads()

    @contextmanager
    def worker(on_start: Callable[[int], object], cancelled: threading.Event) -> Iterator[Callable[[None], _Done[R]]]:
        on_worker()
        outcomes: list[Outcome] = []
        failed: list[FailedReload] = []
        reloader.on_reload, reloader.on_outcome, reloader.on_failure = None, outcomes.append, failed.append

        def run(_: None) -> _Done[R]:
            try:
                return _Done(do(cancelled), None, outcomes, failed)
            except ReloadlabError as error:
                return _Done(None, error, outcomes, failed)

        with reloader.as_worker(verifiers=None, patience=_PATIENCE, on_start=on_start):
            yield run

    with none_left() as on_start:
        (done,) = fork_map(partial(worker, on_start), [None], workers=1, cancel=cancel)
    if isinstance(done, ReloadlabError):
        raise done
    _tell(reloader, done)
    if done.error is not None:
        raise done.error
    return cast(R, done.result)


@dataclass(frozen=True, slots=True)
class _Done(Generic[R]):
    """What one process did: the result, or the error that came instead, and the reloads."""

    result: R | None
    error: ReloadlabError | None
    outcomes: Sequence[Outcome]
    failed: Sequence[FailedReload]


def _tell(reloader: Reloader, done: _Done[R]) -> None:
    """Have the reloader know what its copy has done."""
    for outcome in done.outcomes:
        reloader.tell(outcome)
    if reloader.on_failure is not None:
        for failure in done.failed:
            reloader.on_failure(failure)
    if isinstance(done.error, NotSupported):
        reloader.refused.append(done.error)


def _attempt(
    reloader: Reloader, subject: str, cancel: threading.Event | None, observer: Observer | None = None
) -> Outcome | Failure:
    try:
        return reloader.reload(subject, observer=observer, cancel=cancel)
    except ReloadlabError as error:
        return Failure(subject, error)


def _prepare(reloader: Reloader, subjects: Sequence[str], cancel: threading.Event | None) -> None:
    """Have everything at hand that workers can inherit: the templates, compiled and parsed once for all."""
    endpoints = (reloader.endpoint(subject) for subject in subjects if subject not in (OVERLAY_SUBJECT, XDP_SUBJECT))
    for template in {template_endpoint(endpoint) for endpoint in endpoints}:
        # A source that does not compile is the failure of each reload that needs it.
        with suppress(ReloadlabError):
            reloader.loader.templates.fetch(template, cancel=cancel)
    reloader.loader.stop_idle_threads()
