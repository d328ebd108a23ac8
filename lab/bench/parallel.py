"""Reloads of many pods in parallel: rate, percentiles and the kernel's share, by number of workers and by step."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

from datapath.reload.outcome import Outcome, Span
from lab.agent.agent import Agent, Failure
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.traffic.defaults import RATE, default_flows, flows_of_each
from lab.traffic.traffic import Traffic
from lab.watch.drops import Drops
from lab.watch.invariants import (
    Baseline,
    Expected,
    baseline,
    check_counters,
    check_warnings,
)
from lab.watch.tracing import SyscallEvent, SyscallTracer, TracingUnavailable, kernel_share
from lab.watch.violation import Violation

WORKERS = (1, 2, 4, 8)

OnRound = Callable[[int, int, float], None]
"""Called after each round with its number (from 0), the number of workers, and the reloads per second."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of durations in milliseconds, and the kernel's share of them, 0 to 1 (None: not traced).

    `values_ms` are the durations themselves, in the order in which they were measured.
    """

    p50: float
    p95: float
    p99: float
    kernel_share: float | None
    values_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One reload of a round: who did it, and when (CLOCK_MONOTONIC)."""

    subject: str
    tid: int
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Round:
    """One round of reloads by one number of workers; those that failed are left out."""

    reloads_per_second: float
    reloads: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """The reloads by `workers` processes: median rate of the rounds, percentiles over all reloads, by step, by round.

    `reload` is None, and `steps` is empty, if no reload succeeded.
    """

    workers: int
    reloads: int
    reloads_per_second: float
    reload: Percentiles | None
    steps: dict[str, Percentiles]
    rounds: tuple[Round, ...] = ()


@dataclass(frozen=True, slots=True)
class ParallelReport:
    """The whole measurement. `tracing` says why the kernel's share is missing; None if it is there."""

    pods: int
    rounds: int
    workers: tuple[WorkerReport, ...]
    sent: int
    lost: int
    problems: tuple[str, ...]
    failures: tuple[str, ...]
    tracing: str | None

    @property
    def passed(self) -> bool:
        return not self.problems and not self.failures

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"passed": self.passed}


@dataclass(slots=True)
class WorkerRounds:
    """All rounds with one number of workers: the rate of each in reloads per second, and the result of every reload."""

    workers: int
    rates: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def add(self, results: Sequence[Outcome | Failure], seconds: float) -> None:
        """Note what came of the reloads of one round, which took so long."""
        outcomes = [result for result in results if isinstance(result, Outcome)]
        self.rates.append(len(results) / seconds)
        self.outcomes += outcomes
        self.failures += [result for result in results if isinstance(result, Failure)]
        self.rounds.append(Round(self.rates[-1], tuple(_turn(outcome) for outcome in outcomes if outcome.spans)))

    def run(self, agent: Agent, subjects: Sequence[str], *, on_worker: Callable[[int], None] | None = None) -> None:
        """Reload all subjects once more. `on_worker` is called with the process id of every new worker."""
        start = time.monotonic()
        results = agent.reload_many(subjects, workers=self.workers, on_worker=on_worker)
        self.add(results, time.monotonic() - start)

    def report(self, events: Sequence[SyscallEvent] | None = None) -> WorkerReport:
        """Return the figures of the rounds; with the traced system calls, sorted, also the kernel's share."""
        spans: dict[str, list[Span]] = defaultdict(list)
        for outcome in self.outcomes:
            for span in outcome.spans:
                spans[span.step].append(span)
        whole = [outcome.duration_ns for outcome in self.outcomes]
        everything = [span for found in spans.values() for span in found]
        return WorkerReport(
            workers=self.workers,
            reloads=len(self.outcomes),
            reloads_per_second=median(self.rates),
            reload=_percentiles(whole, everything, events) if whole else None,
            steps={step: _percentiles([s.duration_ns for s in found], found, events) for step, found in spans.items()},
            rounds=tuple(self.rounds),
        )


def measure_parallel(
    *,
    pods: int,
    workers: Sequence[int] = WORKERS,
    rounds: int,
    on_round: OnRound | None = None,
    **options: Any,
) -> ParallelReport:
    """Reload `pods` pods of a new node with each number of workers while two other pods exchange traffic.

    One worker is this process, which verifies the programs of an object in several threads; several workers leave the
    CPUs to each other. `options` go to the Agent.
    """
    with ExitStack() as stack:
        node = stack.enter_context(Node(NodeSpec(f"parallel-{os.getpid()}", pods=pods + 2)))
        agent = stack.enter_context(Agent(node, **options))
        agent.start(workers=2)
        tracer, reason = _tracer(stack)
        # Without a policy nothing is denied.
        flows = [flow for flow in (*default_flows(node), *flows_of_each(node)) if not flow.denied]
        traffic = stack.enter_context(Traffic(flows, rate=RATE))
        drops = stack.enter_context(Drops([node], traffic.flows))
        before = baseline(agent)
        # The first and the last pod exchange most of it; those between them are reloaded.
        subjects = [pod.name for pod in node.pods[1:-1]]
        follow = tracer.follow if tracer is not None else None
        done = reload_rounds(agent, subjects, workers=workers, rounds=rounds, on_worker=follow, on_round=on_round)
        report = traffic.stop()
        if tracer is not None:
            tracer.stop()
            reason = tracer.incomplete
        events = tracer.events if tracer is not None and reason is None else None
        return ParallelReport(
            pods=pods,
            rounds=rounds,
            workers=tuple(each.report(events) for each in done),
            sent=report.sent,
            lost=report.lost,
            problems=(*map(str, report.findings()), *map(str, _violations(agent, before, drops, done))),
            failures=tuple(f"{failure.subject}: {failure.error}" for each in done for failure in each.failures),
            tracing=reason,
        )


def _violations(agent: Agent, before: Baseline, drops: Drops, done: Iterable[WorkerRounds]) -> list[Violation]:
    """Return the warnings of the reloads, and the drops since `before`: none is expected."""
    outcomes = [outcome for each in done for outcome in each.outcomes]
    return [*check_warnings(outcomes, Expected()), *check_counters(agent, before, Expected(), drops)]


def reload_rounds(
    agent: Agent,
    subjects: Sequence[str],
    *,
    workers: Sequence[int],
    rounds: int,
    on_worker: Callable[[int], None] | None = None,
    on_round: OnRound | None = None,
) -> list[WorkerRounds]:
    """Reload all subjects with each number of workers, `rounds` times.

    The worker counts take turns in every round, so that background load meets all of them alike. `on_worker` is
    called with the process id of every new worker.
    """
    done = [WorkerRounds(count) for count in workers]
    for number in range(rounds):
        for each in done:
            each.run(agent, subjects, on_worker=on_worker)
            if on_round is not None:
                on_round(number, each.workers, each.rates[-1])
    return done


def _tracer(stack: ExitStack) -> tuple[SyscallTracer | None, str | None]:
    """Return a running tracer, or None and the reason why there is none."""
    try:
        return stack.enter_context(SyscallTracer()), None
    except TracingUnavailable as error:
        return None, str(error)


def _percentiles(
    durations_ns: Sequence[int], spans: Iterable[Span], events: Sequence[SyscallEvent] | None
) -> Percentiles:
    cuts = quantiles(durations_ns, n=100, method="inclusive") if len(durations_ns) > 1 else [*durations_ns] * 99
    p50, p95, p99 = (cuts[n - 1] / 1e6 for n in (50, 95, 99))
    share = kernel_share(events, spans) if events is not None else None
    return Percentiles(p50, p95, p99, share, tuple(round(duration / 1e6, 3) for duration in durations_ns))


def _turn(outcome: Outcome) -> Turn:
    work = outcome.spans[0].work
    return Turn(outcome.subject, work.tid, work.start_ns, outcome.end_ns)
