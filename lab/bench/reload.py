"""How long a reload takes, next to its floor and to tc doing the same work; where its time goes; and many of them.

All of it happens in scratch labs, in a mount namespace of their own. What is compared takes turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bpf import LIBRARY
from datapath.build.templates import Template
from datapath.kernel.hooks import Direction
from datapath.object.spec import CollectionSpec
from datapath.reload.outcome import Outcome
from datapath.reload.prepare import WriteObject
from datapath.reload.step import Plan
from datapath.timing import Interval
from lab.agent.agent import Agent, Failure
from lab.bench.floor import Floor, Hook
from lab.bench.objects import entries, given, reload_of
from lab.bench.rounds import Busy, Progress, Row, Timed, take_turns
from lab.bench.tc import BPFFS, Tc, compile_for_libbpf
from lab.node.node import Node
from lab.node.topology import NODE, NodeSpec
from lab.system import mounts
from lab.system.scratch import scratch
from lab.watch.tracing import SyscallTracer, TracingUnavailable, kernel_time


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured: our own programs, those of `library`, or the object file `object`."""

    library: Path | None = None
    defines: tuple[tuple[str, str], ...] = ()
    object: Path | None = None
    endpoint_routes: bool = True
    rounds: int = 20
    pods: int = 20
    workers: tuple[int, ...] = (1, 2, 4)
    verifiers: int = 2


@dataclass(frozen=True, slots=True)
class Share:
    """Where the time of a reload goes: medians in seconds.

    `kernel` is the time in which at least one of its threads was inside bpf(2) or a netlink call, `summed` is that of
    all threads together.
    """

    name: str
    wall: float
    kernel: float
    summed: float

    @property
    def userland(self) -> float:
        return self.wall - self.kernel


@dataclass(frozen=True, slots=True)
class Many:
    """Reloads of many pods by so many workers: seconds for all, in every repetition; seconds of every reload."""

    workers: int
    pods: int
    elapsed: tuple[float, ...]
    each: tuple[float, ...]

    @property
    def per_second(self) -> float:
        return self.pods / statistics.median(self.elapsed)

    def percentile(self, percent: int) -> float:
        if len(self.each) < 2:
            return self.each[0]
        return statistics.quantiles(self.each, n=100, method="inclusive")[percent - 1]


@dataclass(slots=True)
class Report:
    """Everything that was measured. `others` is the share of the CPUs that other processes had meanwhile."""

    object: str
    programs: int
    instructions: int
    hooks: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    no_shares: str = ""
    many: list[Many] = field(default_factory=list)
    steps: dict[str, float] = field(default_factory=dict)
    others: float = 0.0


@dataclass(slots=True)
class _Pipeline:
    """Our pipeline, on one pod of a node."""

    name: str
    agent: Agent
    pod: str
    outcomes: list[Outcome] = field(default_factory=list)

    def plan(self) -> Plan:
        plan = self.agent.plan(self.pod, generation=len(self.outcomes) + 2)
        return self.agent.change(plan) if self.agent.change is not None else plan

    def run(self) -> Outcome:
        outcome = self.agent.loader.apply(self.plan())
        self.outcomes.append(outcome)
        return outcome


def measure(setup: Setup, progress: Progress) -> Report:
    """Measure everything. The caller has left the machine's mount namespace (bench_topology.leave_mount_namespace)."""
    template: Template | None = given(setup.object) if setup.object is not None else None
    with ExitStack() as stack:
        progress("compiling")
        ours = _node(stack, setup, "ours", max(setup.pods, 2))
        alone = _agent(stack, setup, ours, template, verifiers=1)
        parallel = _agent(stack, setup, ours, template, verifiers=setup.verifiers)
        pods = [pod.name for pod in ours.pods]
        pipelines = [
            _Pipeline("pipeline, verifying in 1 thread", alone, pods[0]),
            _Pipeline(f"pipeline, verifying in {setup.verifiers} threads", parallel, pods[1]),
        ]
        if template is None:
            template = alone.loader.templates.fetch(alone.endpoint(pods[0]))
        report = _report(template)
        floor = _floor(stack, setup, template)
        tc, refusal = _tc(stack, setup, template)
        busy = Busy()
        rows = take_turns([floor, *(Timed(p.name, p.run) for p in pipelines), *tc], setup.rounds, progress)
        report.others = busy.others()
        report.rows = rows + ([Row("tc filter replace, same object", (), refusal)] if refusal else [])
        report.steps = _steps(pipelines[0].outcomes[-setup.rounds :])
        _trace(report, pipelines, setup.rounds, progress)
        report.many = _many(parallel, pods[: setup.pods], setup.workers, progress)
    return report


def _report(template: Template) -> Report:
    programs = template.image.spec.programs.values()
    hooks = tuple(f"{program} {direction}" for direction, program in entries(template.image).items())
    return Report(str(template.path), len(programs), sum(p.instructions for p in programs), hooks)


def _node(stack: ExitStack, setup: Setup, name: str, pods: int) -> Node:
    return stack.enter_context(Node(NodeSpec(f"bench-{name}", pods=pods, endpoint_routes=setup.endpoint_routes)))


def _agent(stack: ExitStack, setup: Setup, node: Node, template: Template | None, *, verifiers: int) -> Agent:
    agent = Agent(node, library=setup.library, defines=setup.defines, verifiers=verifiers)
    if template is not None:
        agent.change = lambda plan: reload_of(template, plan)
    return stack.enter_context(agent)


def _loaded(stack: ExitStack, setup: Setup, name: str, template: Template) -> tuple[Agent, Plan]:
    """Return a node with one pod that has the object already: its maps are pinned, its filters attached."""
    node = _node(stack, setup, name, 1)
    agent = _agent(stack, setup, node, template, verifiers=1)
    pipeline = _Pipeline(name, agent, node.pods[0].name)
    pipeline.run()
    return agent, pipeline.plan()


def _own_spec(template: Template, plan: Plan) -> CollectionSpec:
    """Return what the object asks for with the constants and names of the plan's endpoint."""
    write = next(step for step in plan.steps if isinstance(step, WriteObject))
    return template.image.spec.substitute(write.object.substitution(template), strict=False)


def _hooks(setup: Setup, template: Template) -> dict[Direction, str]:
    found = entries(template.image)
    return found if setup.endpoint_routes else {d: p for d, p in found.items() if d is Direction.INGRESS}


def _floor(stack: ExitStack, setup: Setup, template: Template) -> Timed:
    agent, plan = _loaded(stack, setup, "floor", template)
    node = agent.node
    hooks = tuple(Hook(program, direction) for direction, program in _hooks(setup, template).items())
    spec = _own_spec(template, plan)
    floor = Floor(spec, agent.config.globals, node.netns(NODE), node.pods[0].ifname, hooks)
    return Timed("floor: the bare system calls", stack.enter_context(floor).run)


def _tc(stack: ExitStack, setup: Setup, template: Template) -> tuple[list[Timed], str]:
    """Return the ways in which tc can do the work, and its words where it cannot."""
    agent, plan = _loaded(stack, setup, "tc", template)
    node, spec = agent.node, _own_spec(template, plan)
    pod, hooks = node.pods[0], _hooks(setup, template)
    mounts.bind_mount(str(agent.config.bpffs), BPFFS)
    stack.callback(mounts.umount, BPFFS)
    write = next(step for step in plan.steps if isinstance(step, WriteObject))
    own = Tc(write.object.path, _sections(spec), spec, node.netns(NODE), pod.ifname, hooks)
    refusal = own.refusal()
    ways = [Timed("tc filter replace, same object", own.replace)] if refusal is None else []
    if setup.object is None and (setup.library is None or setup.library.resolve() == LIBRARY):
        directory = stack.enter_context(scratch())
        path = compile_for_libbpf(agent.config, agent.endpoint(pod.name), "bpf_lxc.c", directory)
        grafted = Tc(path, _sections(template.image.spec), spec, node.netns(NODE), pod.ifname, hooks)
        ways.append(Timed("tc -batch: graft, filter replace (built for libbpf)", grafted.graft))
    return ways, refusal or ""


def _sections(spec: CollectionSpec) -> dict[str, str]:
    return {name: program.section for name, program in spec.programs.items()}


def _steps(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Return the median seconds of every step."""
    times: dict[str, list[float]] = {}
    for outcome in outcomes:
        for span in outcome.spans:
            times.setdefault(span.step, []).append(span.duration_ns / 1e9)
    return {step: statistics.median(values) for step, values in times.items()}


def _trace(report: Report, pipelines: Sequence[_Pipeline], rounds: int, progress: Progress) -> None:
    """Reload again with the system calls traced, which makes each of them a little slower."""
    progress("tracing")
    tracer = SyscallTracer()
    walls: dict[str, list[tuple[int, int, Outcome]]] = {pipeline.name: [] for pipeline in pipelines}
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
    for name, runs in walls.items():
        inside = [kernel_time(tracer.events, _work(outcome, begin, end)) for begin, end, outcome in runs]
        wall = statistics.median(end - begin for begin, end, _ in runs)
        elapsed, summed = statistics.median(t.elapsed for t in inside), statistics.median(t.summed for t in inside)
        report.shares.append(Share(name, wall / 1e9, elapsed / 1e9, summed / 1e9))


def _work(outcome: Outcome, begin: int, end: int) -> list[Interval]:
    """Return the work of a reload's threads: the thread that began it all the time, its helpers while they helped."""
    helpers = (helper for span in outcome.spans for helper in span.helpers)
    return [Interval(outcome.spans[0].work.tid, begin, end), *helpers]


def _many(agent: Agent, pods: Sequence[str], workers: Sequence[int], progress: Progress, repeat: int = 3) -> list[Many]:
    """Reload all pods with several workers; the numbers of workers take turns."""
    elapsed: dict[int, list[float]] = {count: [] for count in workers}
    each: dict[int, list[float]] = {count: [] for count in workers}
    _succeeded(agent.reload_many(pods, workers=1))
    for number in range(repeat):
        for count in workers:
            progress(f"{len(pods)} pods, {count} workers, {number + 1} of {repeat}")
            begin = time.monotonic()
            outcomes = _succeeded(agent.reload_many(pods, workers=count))
            elapsed[count].append(time.monotonic() - begin)
            each[count] += [outcome.duration_ns / 1e9 for outcome in outcomes]
    return [Many(count, len(pods), tuple(elapsed[count]), tuple(each[count])) for count in workers]


def _succeeded(results: Iterable[Outcome | Failure]) -> list[Outcome]:
    outcomes = []
    for result in results:
        if isinstance(result, Failure):
            raise result.error
        outcomes.append(result)
    return outcomes
