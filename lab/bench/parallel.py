"""The time of reloads in parallel: many pods, several worker counts, every step timed, the kernel's share of each."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from datapath.reload.outcome import Outcome, Span
from lab.agent.agent import Agent, Failure
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.traffic.defaults import RATE, default_flows
from lab.traffic.traffic import Traffic
from lab.watch.tracing import SyscallTracer, TracingUnavailable, kernel_share

WORKERS = (1, 2, 4, 8)
PODS = 50
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles of many durations, in milliseconds, and which share of them the kernel took (None: not traced)."""

    p50: float
    p95: float
    p99: float
    kernel_share: float | None


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What `workers` processes did together: median of the rounds, percentiles over all reloads."""

    workers: int
    reloads: int
    reloads_per_second: float
    reload: Times
    steps: dict[str, Times]


@dataclass(frozen=True, slots=True)
class ParallelReport:
    """The whole measurement. `tracing` says why the kernel's share is missing, None if it is there."""

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


def measure(
    *,
    pods: int = PODS,
    workers: Sequence[int] = WORKERS,
    rounds: int = ROUNDS,
    on_round: Callable[[int, int, float], None] | None = None,
    **options: Any,
) -> ParallelReport:
    """Reload `pods` pods with each number of workers, `rounds` times in turn, while two other pods talk.

    `on_round` hears (round, workers, reloads per second). The rounds interleave the worker counts, so that what else
    the machine does meets all of them alike. One worker is this process, which verifies the programs of an object in
    threads side by side; several leave the CPUs to each other. `options` go to the Agent.
    """
    outcomes: dict[int, list[Outcome]] = defaultdict(list)
    rates: dict[int, list[float]] = defaultdict(list)
    failures: list[str] = []
    with ExitStack() as stack:
        node = stack.enter_context(Node(NodeSpec(f"parallel-{os.getpid()}", pods=pods + 2)))
        agent = stack.enter_context(Agent(node, **options))
        agent.start(workers=2)
        tracer, reason = _tracer(stack)
        follow = tracer.follow if tracer is not None else None
        traffic = stack.enter_context(Traffic(default_flows(node), rate=RATE))
        # The first and the last pod talk, so the others are what is reloaded.
        subjects = [pod.name for pod in node.pods[1:-1]]
        for number in range(rounds):
            for count in workers:
                start = time.monotonic()
                results = agent.reload_many(subjects, workers=count, on_worker=follow)
                rates[count].append(len(results) / (time.monotonic() - start))
                outcomes[count] += [result for result in results if isinstance(result, Outcome)]
                failures += [f"{r.subject}: {r.error}" for r in results if isinstance(r, Failure)]
                if on_round is not None:
                    on_round(number, count, rates[count][-1])
        report = traffic.stop()
        if tracer is not None:
            tracer.stop()
        return ParallelReport(
            pods=pods,
            rounds=rounds,
            workers=tuple(_worker_report(n, outcomes[n], rates[n], tracer) for n in workers),
            sent=report.sent,
            lost=report.lost,
            problems=tuple(report.problems()),
            failures=tuple(failures),
            tracing=reason,
        )


def _tracer(stack: ExitStack) -> tuple[SyscallTracer | None, str | None]:
    tracer = SyscallTracer()
    try:
        stack.enter_context(tracer)
    except TracingUnavailable as error:
        return None, str(error)
    return tracer, None


def _worker_report(
    workers: int, outcomes: Sequence[Outcome], rates: Sequence[float], tracer: SyscallTracer | None
) -> WorkerReport:
    spans: dict[str, list[Span]] = defaultdict(list)
    for outcome in outcomes:
        for span in outcome.spans:
            spans[span.step].append(span)
    whole = [outcome.duration_ns for outcome in outcomes]
    everything = [span for outcome in outcomes for span in outcome.spans]
    return WorkerReport(
        workers=workers,
        reloads=len(outcomes),
        reloads_per_second=median(rates),
        reload=_times(whole, everything, tracer),
        steps={step: _times([s.duration_ns for s in found], found, tracer) for step, found in spans.items()},
    )


def _times(durations_ns: Sequence[int], spans: Iterable[Span], tracer: SyscallTracer | None) -> Times:
    cuts = quantiles(durations_ns, n=100, method="inclusive") if len(durations_ns) > 1 else [*durations_ns] * 99
    p50, p95, p99 = (cuts[n - 1] / 1e6 for n in (50, 95, 99))
    return Times(p50, p95, p99, kernel_share(tracer.events, spans) if tracer is not None else None)
