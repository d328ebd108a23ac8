"""Where the time of a reload goes: system calls, traced, and the processor time outside the kernel."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from datapath.base.timing import Interval
from datapath.reload.outcome import Outcome, Span
from lab.agent.agent import Agent
from lab.bench.rounds import Progress
from lab.bench.steps import by_step
from lab.results.result import Series
from lab.watch.tracing import SyscallEvent, SyscallTracer, TracingUnavailable, kernel_time


@dataclass(slots=True)
class Pipeline:
    """The reload pipeline, on one subject of a node."""

    name: str
    agent: Agent
    subject: str
    outcomes: list[Outcome] = field(default_factory=list)
    user: list[float] = field(default_factory=list)

    def run(self) -> Outcome:
        with self.agent.reloading_subject(self.subject):
            plan = self.agent.plan(self.subject, generation=len(self.outcomes) + 2)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            outcome = self.agent.loader.apply_locked(plan)
            self.user.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
        self.outcomes.append(outcome)
        return outcome


@dataclass(frozen=True, slots=True)
class SystemCallTime:
    """The system calls of a pipeline's reloads, in seconds.

    `walls` are the times of the reloads, `kernels` the parts of them with at least one thread inside bpf(2) or a
    netlink call, `sums` the times inside them over all threads. `users` are the processor times outside the kernel, of
    any system call, without tracing; the kernel counts them in ticks, so only their mean says something.
    """

    name: str
    walls: tuple[float, ...]
    kernels: tuple[float, ...]
    sums: tuple[float, ...]
    users: tuple[float, ...]

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def kernel(self) -> float:
        return statistics.median(self.kernels)

    @property
    def summed(self) -> float:
        return statistics.median(self.sums)

    @property
    def user(self) -> float:
        return statistics.mean(self.users)

    @property
    def rest(self) -> float:
        return self.wall - self.kernel

    def series(self) -> Iterable[Series]:
        """Yield the series of the result, those of traced reloads first."""
        group = "traced reload"
        for what, values in (
            ("", self.walls),
            (", in bpf(2) and netlink", self.kernels),
            (", in bpf(2) and netlink, all threads", self.sums),
        ):
            yield Series(f"{group}: {self.name}{what}", "s", values, group=group)
        yield Series(f"reload, user time: {self.name}", "s", self.users)


@dataclass(slots=True)
class CallTimes:
    """The traced reloads. `rests` are the seconds of each step of the first pipeline outside bpf(2) and netlink.

    `missing` says why there are none.
    """

    shares: list[SystemCallTime] = field(default_factory=list)
    rests: dict[str, tuple[float, ...]] = field(default_factory=dict)
    missing: str = ""


def trace(pipelines: Sequence[Pipeline], rounds: int, progress: Progress) -> CallTimes:
    """Reload again with the system calls traced, which slows each of them down a little."""
    progress("tracing")
    tracer, found = SyscallTracer(), CallTimes()
    walls: dict[str, list[tuple[int, int, Outcome]]] = {pipeline.name: [] for pipeline in pipelines}
    user = {pipeline.name: tuple(pipeline.user[-rounds:]) for pipeline in pipelines}
    try:
        with tracer:
            for _ in range(rounds):
                for pipeline in pipelines:
                    begin = time.monotonic_ns()
                    outcome = pipeline.run()
                    walls[pipeline.name].append((begin, time.monotonic_ns(), outcome))
    except TracingUnavailable as error:
        return CallTimes(missing=str(error))
    if tracer.incomplete is not None:
        return CallTimes(missing=tracer.incomplete)
    for name, runs in walls.items():
        inside = [kernel_time(tracer.events, _work(outcome, begin, end)) for begin, end, outcome in runs]
        found.shares.append(
            SystemCallTime(
                name,
                tuple((end - begin) / 1e9 for begin, end, _ in runs),
                tuple(each.elapsed / 1e9 for each in inside),
                tuple(each.summed / 1e9 for each in inside),
                user[name],
            )
        )
    first = walls[pipelines[0].name]
    found.rests = by_step([(s, _outside(tracer.events, s)) for s in outcome.spans] for *_, outcome in first)
    return found


def _outside(events: Sequence[SyscallEvent], span: Span) -> int:
    """Return the nanoseconds of a step in which its thread was in no system call that was traced."""
    return span.duration_ns - kernel_time(events, [span.work]).elapsed


def _work(outcome: Outcome, begin: int, end: int) -> list[Interval]:
    """Return the work of a reload: its own thread from `begin` to `end`, its helpers while they helped."""
    helpers = (helper for span in outcome.spans for helper in span.helpers)
    return [Interval(outcome.spans[0].work.tid, begin, end), *helpers]
