"""The time of a reload, compared with its floor and with tc; the kernel's part of it; reloads of many pods.

Everything runs in scratch labs, in a mount namespace of their own. All variants are measured in turns.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bpf import LIBRARY
from datapath.base.timing import Interval
from datapath.build.templates import Template
from datapath.endpoint import Attachment
from datapath.kernel.hooks import Direction
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Outcome, Span
from datapath.reload.prepare import WriteObject
from datapath.reload.step import Plan
from lab.agent.agent import Agent
from lab.bench.floor import Floor, Hook
from lab.bench.footprint import footprint
from lab.bench.objects import entry_programs, object_template, plan_with_object
from lab.bench.parallel import WorkerReport, WorkerRounds, reload_rounds
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, TimedCall, run_in_turns
from lab.bench.steps import by_step, step_series
from lab.bench.tc import BPFFS, Tc
from lab.loaders.libbpf import compile_for_libbpf
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.results.result import Better, Series, exact
from lab.system import mounts
from lab.system.scratch import scratch
from lab.watch.tracing import SyscallEvent, SyscallTracer, TracingUnavailable, kernel_time

PARALLEL_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class ReloadOptions:
    """What to measure: our own programs, those of `library`, or the object file `object`."""

    library: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()
    object: Path | None = None
    endpoint_routes: bool = True
    rounds: int = 20
    pods: int = 20
    workers: tuple[int, ...] = (1, 2, 4)
    verifiers: int = 2
    attach: Attachment = Attachment.TC


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
class ReloadReport:
    """All results. `others` is the share of the CPUs that other processes had meanwhile.

    Of the object's `programs`, `reached` are reached from the hooks: the pipeline leaves the others out. `steps` are
    the seconds of each step in the reloads of the first pipeline, `rests` those that it spends outside bpf(2) and
    netlink. `parallel` are the reloads of `pods` pods; `rates` are the values behind it, `exact` what no chance moves.
    """

    object: str
    programs: int
    reached: int
    instructions: int
    hooks: tuple[str, ...]
    rows: list[Measurement] = field(default_factory=list)
    shares: list[SystemCallTime] = field(default_factory=list)
    no_shares: str = ""
    pods: int = 0
    parallel: list[WorkerReport] = field(default_factory=list)
    steps: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rests: dict[str, tuple[float, ...]] = field(default_factory=dict)
    rates: list[Series] = field(default_factory=list)
    exact: list[Series] = field(default_factory=list)
    others: float = 0.0

    def series(self) -> list[Series]:
        """Return the series of the result."""
        counts = {"programs": self.programs, "reached programs": self.reached, "instructions": self.instructions}
        return [
            *(row.series("reload") for row in self.rows),
            *step_series("step", self.steps, "reload"),
            *step_series("traced step, outside bpf(2) and netlink", self.rests, "traced reload"),
            *(series for share in self.shares for series in share.series()),
            *self.rates,
            *(exact(f"object: {name}", name.split()[-1], number) for name, number in counts.items()),
            *self.exact,
        ]


@dataclass(slots=True)
class _Pipeline:
    """The reload pipeline, on one pod of a node."""

    name: str
    agent: Agent
    pod: str
    outcomes: list[Outcome] = field(default_factory=list)
    user: list[float] = field(default_factory=list)

    def plan(self) -> Plan:
        plan = self.agent.plan(self.pod, generation=len(self.outcomes) + 2)
        return self.agent.change(plan) if self.agent.change is not None else plan

    def run(self) -> Outcome:
        plan, before = self.plan(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
        outcome = self.agent.loader.apply(plan)
        self.user.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
        self.outcomes.append(outcome)
        return outcome


def measure_reload(options: ReloadOptions, progress: Progress) -> ReloadReport:
    """Measure everything. The caller has called lab.bench.topology.isolate_mounts."""
    template: Template | None = object_template(options.object) if options.object is not None else None
    with ExitStack() as stack:
        progress("compiling")
        ours = _node(stack, options, "ours", max(options.pods, 2))
        alone = _agent(stack, options, ours, template, verifiers=1)
        whole = _agent(stack, options, ours, template, verifiers=1, all_programs=True)
        parallel = _agent(stack, options, ours, template, verifiers=options.verifiers)
        pods = [pod.name for pod in ours.pods]
        pipelines = [
            _Pipeline("pipeline, verifying in 1 thread", alone, pods[0]),
            _Pipeline(f"pipeline, verifying in {options.verifiers} threads", parallel, pods[1]),
        ]
        if template is None:
            template = alone.loader.templates.fetch(alone.endpoint(pods[0]))
        report = _report(template, _hooks(options, template))
        floors = [_floor(stack, options, template)]
        if report.reached < report.programs:
            pipelines.append(_Pipeline("pipeline, all programs, in 1 thread", whole, pods[0]))
            floors.append(_floor(stack, options, template, all_programs=True))
        tc, refusal = _tc(stack, options, template)
        report.exact = [exact("object: size", "bytes", len(template.image.data)), *footprint(pipelines[0].run())]
        background = BackgroundLoad()
        rows = run_in_turns([*floors, *(TimedCall(p.name, p.run) for p in pipelines), *tc], options.rounds, progress)
        report.others = background.share()
        report.rows = rows + ([Measurement("tc filter replace, same object", (), refusal)] if refusal else [])
        outcomes = pipelines[0].outcomes[-options.rounds :]
        report.steps = by_step([(s, s.duration_ns) for s in outcome.spans] for outcome in outcomes)
        _trace(report, pipelines, options.rounds, progress)
        report.pods = options.pods
        done = _in_parallel(parallel, pods[: options.pods], options, progress)
        report.parallel = [each.report() for each in done]
        report.rates = [series for each in done for series in _rates(each, options.pods)]
    return report


def _report(template: Template, attached: Mapping[Direction, str]) -> ReloadReport:
    programs, reached = template.image.spec.programs, template.reached(tuple(attached.values())).programs
    hooks = tuple(f"{program} {direction}" for direction, program in attached.items())
    instructions = sum(p.instructions for p in programs.values())
    return ReloadReport(str(template.path), len(programs), len(reached), instructions, hooks)


def _node(stack: ExitStack, options: ReloadOptions, name: str, pods: int) -> Node:
    return stack.enter_context(Node(NodeSpec(f"bench-{name}", pods=pods, endpoint_routes=options.endpoint_routes)))


def _agent(
    stack: ExitStack,
    options: ReloadOptions,
    node: Node,
    template: Template | None,
    *,
    verifiers: int,
    all_programs: bool = False,
) -> Agent:
    agent = Agent(
        node,
        library=options.library,
        defines=options.defines,
        verifiers=verifiers,
        attach=options.attach,
        all_programs=all_programs,
    )
    if template is not None:
        agent.change = lambda plan: plan_with_object(template, plan)
    return stack.enter_context(agent)


def _loaded(stack: ExitStack, options: ReloadOptions, name: str, template: Template) -> tuple[Agent, Plan]:
    """Load the object for the pod of a new node; return the node's agent and the plan of the next reload."""
    node = _node(stack, options, name, 1)
    agent = _agent(stack, options, node, template, verifiers=1)
    pipeline = _Pipeline(name, agent, node.pods[0].name)
    pipeline.run()
    return agent, pipeline.plan()


def _own_spec(template: Template, plan: Plan, spec: CollectionSpec) -> CollectionSpec:
    """Return what the template asks for with the constants and names of the plan's endpoint."""
    write = next(step for step in plan.steps if isinstance(step, WriteObject))
    return spec.substitute(write.object.substitution(template), strict=False)


def _hooks(options: ReloadOptions, template: Template) -> dict[Direction, str]:
    found = entry_programs(template.image)
    return found if options.endpoint_routes else {d: p for d, p in found.items() if d is Direction.INGRESS}


def _floor(stack: ExitStack, options: ReloadOptions, template: Template, *, all_programs: bool = False) -> TimedCall:
    agent, plan = _loaded(stack, options, "whole" if all_programs else "floor", template)
    node, attached = agent.node, _hooks(options, template)
    hooks = tuple(Hook(program, direction) for direction, program in attached.items())
    wanted = template.image.spec if all_programs else template.reached(tuple(attached.values()))
    spec = _own_spec(template, plan, wanted)
    floor = Floor(spec, agent.config.globals, node.netns(NODE), node.pods[0].ifname, hooks)
    name = "floor: the bare system calls" + (", all programs" if all_programs else "")
    return TimedCall(name, stack.enter_context(floor).run)


def _tc(stack: ExitStack, options: ReloadOptions, template: Template) -> tuple[list[TimedCall], str]:
    """Return the variants that tc can run, and its message if it refuses the object as a whole."""
    agent, plan = _loaded(stack, options, "tc", template)
    node, spec = agent.node, _own_spec(template, plan, template.image.spec)
    pod, hooks = node.pods[0], _hooks(options, template)
    mounts.bind_mount(str(agent.config.bpffs), BPFFS)
    stack.callback(mounts.umount, BPFFS)
    write = next(step for step in plan.steps if isinstance(step, WriteObject))
    own = Tc(write.object.path, _sections(spec), spec, node.netns(NODE), pod.ifname, hooks)
    refusal = own.refusal()
    variants = [TimedCall("tc filter replace, same object", own.replace)] if refusal is None else []
    if options.object is None and (options.library is None or options.library.resolve() == LIBRARY):
        directory = stack.enter_context(scratch())
        path = compile_for_libbpf(agent.config, agent.endpoint(pod.name), "bpf_lxc.c", directory)
        grafted = Tc(path, _sections(template.image.spec), spec, node.netns(NODE), pod.ifname, hooks)
        variants.append(TimedCall("tc -batch: graft, filter replace (built for libbpf)", grafted.graft))
    return variants, refusal or ""


def _sections(spec: CollectionSpec) -> dict[str, str]:
    return {name: program.section for name, program in spec.programs.items()}


def _outside(events: Sequence[SyscallEvent], span: Span) -> int:
    """Return the nanoseconds of a step in which its thread was in no system call that was traced."""
    return span.duration_ns - kernel_time(events, [span.work]).elapsed


def _trace(report: ReloadReport, pipelines: Sequence[_Pipeline], rounds: int, progress: Progress) -> None:
    """Reload again with the system calls traced, which slows each of them down a little."""
    progress("tracing")
    tracer = SyscallTracer()
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
        report.no_shares = str(error)
        return
    if tracer.incomplete is not None:
        report.no_shares = tracer.incomplete
        return
    for name, runs in walls.items():
        inside = [kernel_time(tracer.events, _work(outcome, begin, end)) for begin, end, outcome in runs]
        report.shares.append(
            SystemCallTime(
                name,
                tuple((end - begin) / 1e9 for begin, end, _ in runs),
                tuple(each.elapsed / 1e9 for each in inside),
                tuple(each.summed / 1e9 for each in inside),
                user[name],
            )
        )
    first = walls[pipelines[0].name]
    report.rests = by_step([(s, _outside(tracer.events, s)) for s in outcome.spans] for *_, outcome in first)


def _work(outcome: Outcome, begin: int, end: int) -> list[Interval]:
    """Return the work of a reload: its own thread from `begin` to `end`, its helpers while they helped."""
    helpers = (helper for span in outcome.spans for helper in span.helpers)
    return [Interval(outcome.spans[0].work.tid, begin, end), *helpers]


def _rates(done: WorkerRounds, pods: int) -> Iterable[Series]:
    """Yield the rate of each round, and the time of each reload: those of a round are one observation."""
    name = f"{pods} pods, {done.workers} at a time"
    yield Series(f"many: {name}", "reloads/s", tuple(done.rates), better=Better.HIGHER)
    times = tuple(outcome.duration_ns / 1e9 for outcome in done.outcomes)
    yield Series(f"one of many: {name}", "s", times, block=pods)


def _in_parallel(agent: Agent, pods: Sequence[str], options: ReloadOptions, progress: Progress) -> list[WorkerRounds]:
    """Reload all pods with each number of workers; the first failure is raised."""

    def on_round(number: int, workers: int, rate: float) -> None:
        progress(f"{len(pods)} pods, {workers} workers, round {number + 1} of {PARALLEL_ROUNDS}: {rate:.1f} reloads/s")

    warm_up = reload_rounds(agent, pods, workers=(1,), rounds=1)
    done = reload_rounds(agent, pods, workers=options.workers, rounds=PARALLEL_ROUNDS, on_round=on_round)
    for each in (*warm_up, *done):
        for failure in each.failures:
            raise failure.error
    return done
