"""The time of a reload, compared with its floor, with tc and with loaders; the kernel's part of it; many reloads.

Everything runs in scratch labs, in a mount namespace of their own. All variants are measured in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from lab.agent.agent import Agent
from lab.bench import baselines
from lab.bench.calltimes import CallTimes, Pipeline, trace
from lab.bench.footprint import before_load, footprint
from lab.bench.held import HeldArrays, wait_until_gone
from lab.bench.loaders import loader_variants
from lab.bench.objects import object_template
from lab.bench.parallel import WorkerReport, WorkerRounds
from lab.bench.planned import PlannedObject, planned_objects
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, TimedCall, Variant, run_in_turns
from lab.bench.setting import ReloadOptions, Setting, Subject
from lab.bench.steps import by_step, step_series
from lab.results.result import Better, Series, exact

PARALLEL_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class ManyReloads:
    """The reloads of many pods in one way, and the time of each on average, in times of the floor."""

    name: str
    report: WorkerReport
    ratio: float


@dataclass(slots=True)
class ReloadReport:
    """All results. `others` is the share of the CPUs that other processes had meanwhile.

    Of the `programs` of all objects of the subject, `reached` are reached from the hooks: the pipeline leaves the
    others out. `steps` are the seconds of each step in the reloads of the first pipeline, `calls` what was traced.
    `many` are the reloads of `pods` pods; `rates` are the values behind it, `exact` what no chance moves.
    """

    object: str
    programs: int
    reached: int
    instructions: int
    hooks: tuple[str, ...]
    rows: list[Measurement] = field(default_factory=list)
    calls: CallTimes = field(default_factory=CallTimes)
    pods: int = 0
    many: list[ManyReloads] = field(default_factory=list)
    steps: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rates: list[Series] = field(default_factory=list)
    exact: list[Series] = field(default_factory=list)
    others: float = 0.0

    def series(self) -> list[Series]:
        """Return the series of the result."""
        counts = {"programs": self.programs, "reached programs": self.reached, "instructions": self.instructions}
        return [
            *(row.series("reload") for row in self.rows),
            *step_series("step", self.steps, "reload"),
            *step_series("traced step, outside bpf(2) and netlink", self.calls.rests, "traced reload"),
            *(series for share in self.calls.shares for series in share.series()),
            *self.rates,
            *(exact(f"object: {name}", name.split()[-1], number) for name, number in counts.items()),
            *self.exact,
        ]


def measure_reload(options: ReloadOptions, progress: Progress) -> ReloadReport:
    """Measure everything. The caller has called lab.bench.topology.isolate_mounts."""
    with ExitStack() as stack:
        progress("compiling")
        setting = Setting(stack, options, object_template(options.object) if options.object is not None else None)
        many = options.subject is Subject.POD
        ours = setting.node("ours", max(options.pods, 2) if many else 1)
        # Two pods, so that neither of them has just been reloaded by the other; there is only one host.
        first, second = (options.subject.of(ours, number if many else 0) for number in range(2))
        alone, parallel = setting.agent(ours), setting.agent(ours, verifiers=options.verifiers)
        whole = setting.agent(ours, all_programs=True)
        pipelines = [
            Pipeline("pipeline, verifying in 1 thread", alone, first),
            Pipeline(f"pipeline, verifying in {options.verifiers} threads", parallel, second),
        ]
        template = setting.template(alone)
        objects = planned_objects(alone.plan(first), template)
        report = _report(objects)
        floors = [baselines.floor(setting)]
        if report.reached < report.programs:
            pipelines.append(Pipeline("pipeline, all programs, in 1 thread", whole, first))
            floors.append(baselines.floor(setting, all_programs=True))
        report.exact = [*before_load(objects), *footprint(pipelines[0].run())]
        background = BackgroundLoad()
        report.rows = _rows(setting, [*floors, *(TimedCall(p.name, p.run) for p in pipelines)], progress)
        report.others = background.share()
        outcomes = pipelines[0].outcomes[-options.rounds :]
        report.steps = by_step([(s, s.duration_ns) for s in outcome.spans] for outcome in outcomes)
        report.calls = trace(pipelines, options.rounds, progress)
        if many:
            report.pods = options.pods
            _measure_many(report, alone, parallel, floors[0], setting, progress)
    return report


def _report(objects: Sequence[PlannedObject]) -> ReloadReport:
    """Return a report that says of which objects it is, and nothing else yet."""
    wholes = [item.spec(all_programs=True).programs for item in objects]
    reached = sum(len(item.spec(all_programs=False).programs) for item in objects)
    several = len({item.ifname for item in objects}) > 1
    hooks = tuple(
        f"{program} {direction}" + (f" of {item.ifname}" if several else "")
        for item in objects
        for direction, program in item.hooks.items()
    )
    instructions = sum(program.instructions for programs in wholes for program in programs.values())
    return ReloadReport(str(objects[0].template.path), sum(map(len, wholes)), reached, instructions, hooks)


def _rows(setting: Setting, ours: Sequence[TimedCall], progress: Progress) -> list[Measurement]:
    """Measure our variants, those of tc and the loaders in turns; those that cannot run are the last."""
    tc = baselines.tc(setting)
    variants: list[Variant] = [*ours, *tc.variants]
    refused = [Measurement(baselines.TC, refusal=tc.refusal)] if tc.refusal else []
    for each in loader_variants(setting):
        if isinstance(each, Measurement):
            refused.append(each)
        else:
            variants.append(each)
    return run_in_turns(variants, setting.options.rounds, progress, held=setting.held) + refused


def _measure_many(
    report: ReloadReport, alone: Agent, parallel: Agent, floor: TimedCall, setting: Setting, progress: Progress
) -> None:
    """Reload all pods in each way, in turns with as many times the floor; the first failure is raised."""
    options = setting.options
    pods = [pod.name for pod in parallel.node.pods[: options.pods]]
    ways = [("1 at a time, verifying in 1 thread", alone, WorkerRounds(1))]
    ways += [(f"{count} at a time", parallel, WorkerRounds(count)) for count in options.workers]
    WorkerRounds(1).run(parallel, pods)
    WorkerRounds(1).run(alone, pods)
    floors = []
    for number in range(PARALLEL_ROUNDS):
        with _emptied_after(setting.held):
            floors.append(len(pods) / _seconds(lambda: [floor.call() for _ in pods]))
        for name, agent, done in ways:
            with _emptied_after(setting.held):
                done.run(agent, pods)
            for failure in done.failures:
                raise failure.error
            rate = f"{done.rates[-1]:.1f} reloads/s"
            progress(f"{len(pods)} pods, {name}, round {number + 1} of {PARALLEL_ROUNDS}: {rate}")
    bare = Measurement(baselines.FLOOR, tuple(1 / rate for rate in floors))
    report.rates.append(_rate(f"{len(pods)} times the floor", floors))
    for name, _, done in ways:
        ratio, *_ = Measurement(name, tuple(1 / rate for rate in done.rates)).ratio(bare)
        report.many.append(ManyReloads(name, done.report(), ratio))
        report.rates += _rates(f"{len(pods)} pods, {name}", done, len(pods))


@contextmanager
def _emptied_after(arrays: HeldArrays) -> Iterator[None]:
    """Wait at the end of the block until the kernel has emptied what was replaced in it: the next must not feel it."""
    before = arrays.pinned()
    yield
    wait_until_gone(before - arrays.pinned())


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _rate(name: str, rates: Sequence[float]) -> Series:
    return Series(f"many: {name}", "reloads/s", tuple(rates), better=Better.HIGHER)


def _rates(name: str, done: WorkerRounds, pods: int) -> Iterable[Series]:
    """Yield the rate of each round, and the time of each reload: those of a round are one observation."""
    yield _rate(name, done.rates)
    times = tuple(outcome.duration_ns / 1e9 for outcome in done.outcomes)
    yield Series(f"one of many: {name}", "s", times, block=pods)
