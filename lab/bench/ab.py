"""Two sides of the same reload in one run: in lockstep, in random order, for as many rounds as the precision needs."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import fmean

from datapath.reload.outcome import Outcome
from datapath.reload.step import Step
from datapath.reload.workspace import Workspace
from lab.agent.agent import Agent
from lab.bench.footprint import before_load, footprint
from lab.bench.held import HeldArrays, wait_until_gone
from lab.bench.planned import planned_objects
from lab.bench.rounds import BackgroundLoad, Progress
from lab.bench.sides import SIDES, Side
from lab.bench.steps import by_step, seconds_of, step_series
from lab.bench.topology import settle
from lab.bench.undertraffic import reloads_under_traffic
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.results.deciding import RELOAD
from lab.results.result import Course, Series
from lab.results.statistics import block_medians, paired, warm_up

RELOADS = 6
"""Reloads of each side in a round, in lockstep; the median is the value of the round. Each side begins half of them."""

FEWEST_ROUNDS = 20
"""Rounds before the precision is looked at for the first time."""

LOOK_EVERY = 5
"""Rounds between two looks at the precision: who looks after every round stops too early."""

_GROUP = "rounds"


@dataclass(frozen=True, slots=True)
class AbOptions:
    """`precision` is the half width of the wanted interval of the ratio (0.01: 1 %); `max_time` in seconds.

    `trials` are reloads of everything under traffic, of each side, after the rounds.
    """

    sides: tuple[Side, Side]
    precision: float = 0.01
    max_time: float = 600.0
    seed: int = 0
    endpoint_routes: bool = True
    trials: int = 0


@dataclass(frozen=True)
class Sleep(Step):
    """Do nothing for so many seconds."""

    seconds: float

    name = "sleep"

    def describe(self) -> str:
        return f"sleep for {self.seconds * 1e3:g} ms"

    def apply(self, work: Workspace) -> None:
        time.sleep(self.seconds)


@dataclass(slots=True)
class Reloads:
    """The reloads of one side until now: outcomes, seconds, CPU seconds, places in the turn; all in their order.

    `user` and `system` are CPU seconds outside the kernel and inside.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def medians(self) -> list[float]:
        """Return the value of each round."""
        return block_medians(self.seconds, RELOADS)

    def series(self, side: str, *, external: bool) -> list[Series]:
        """Return the series. With an external loader, only the step that it does is the same on both sides."""
        whole = Series(RELOAD, "s", tuple(self.seconds), side=side, group=_GROUP, positions=tuple(self.positions))
        both = tuple(user + system for user, system in zip(self.user, self.system, strict=True))
        cpu = replace(whole, name="CPU time", values=both)
        steps = by_step([(s, s.duration_ns) for s in outcome.spans] for outcome in self.outcomes)
        found = [whole] if external else [whole, cpu, *step_series("step", steps, _GROUP, side=side)]
        blocks = [replace(series, block=RELOADS) for series in found]
        return blocks if external else [*blocks, *self._parts_of_cpu_time(side)]

    def _parts_of_cpu_time(self, side: str) -> list[Series]:
        """Return the means of rounds: the kernel counts what is inside and outside of it in ticks."""
        parts = {"user time": self.user, "system time": self.system}
        rounds = range(0, len(self.user), RELOADS)
        return [
            Series(name, "s", tuple(fmean(values[at : at + RELOADS]) for at in rounds), side=side, group=_GROUP)
            for name, values in parts.items()
        ]


def warm_up_of(sides: Sequence[Sequence[float]]) -> int:
    """Return the rounds that belong to the warm-up, of the values of the rounds of each side."""
    return warm_up(sides) if len(sides[0]) > 1 else 0


def precision_of(sides: Sequence[Sequence[float]]) -> float:
    """Return the half width of the interval of the ratio after the warm-up, of the values of each side's rounds."""
    first = warm_up_of(sides)
    return paired(sides[0][first:], sides[1][first:]).change.half_width


def enough(sides: Sequence[Sequence[float]], precision: float) -> bool:
    """Tell whether a look is due after these rounds, and finds the wanted precision."""
    rounds = len(sides[0])
    due = rounds >= FEWEST_ROUNDS and (rounds - FEWEST_ROUNDS) % LOOK_EVERY == 0
    return due and precision_of(sides) <= precision


@dataclass(frozen=True, slots=True)
class AbReport:
    """What was measured; `exact` are the series that do not depend on chance, `others` the load of other processes."""

    sides: Sequence[Reloads]
    exact: tuple[Series, ...]
    external: bool
    others: float
    seed: int
    trials: Sequence[Series] = ()

    def series(self) -> list[Series]:
        """Return the series of the result."""
        measured = (each.series(name, external=self.external) for name, each in zip(SIDES, self.sides, strict=True))
        return [*(series for side in measured for series in side), *self.exact, *self.trials]

    def course(self) -> Course:
        """Return how it was measured."""
        values = [each.medians() for each in self.sides]
        warm = warm_up_of(values)
        return Course(rounds=len(values[0]) - warm, warm_up=warm, seed=self.seed)


def measure_ab(options: AbOptions, progress: Progress, on_look: Callable[[AbReport], object]) -> AbReport:
    """Measure the sides until the precision is reached or the time is over.

    Each round has new nodes: two nodes that are made alike still differ by some percent for as long as they live. What
    is replaced is held until the round is over (lab/bench/held.py).
    `on_look` is called with what there is until then, so that it can be kept. The caller has left the mounts of the
    machine.
    """
    order, sides = random.Random(options.seed), tuple(Reloads() for _ in SIDES)
    external = any(side.loader is not None for side in options.sides)
    progress("verifying")
    loaded = tuple(each for number in range(len(SIDES)) for each in _before_load(options, number))
    background, deadline = BackgroundLoad(), time.monotonic() + options.max_time
    while True:
        number = len(sides[0].seconds) // RELOADS + 1
        progress(f"round {number}")
        exact = _round(options, sides, order, external=external)
        report = AbReport(sides, (*loaded, *exact), external, background.share(), options.seed)
        values = [each.medians() for each in sides]
        if enough(values, options.precision) or time.monotonic() >= deadline:
            break
        if number % LOOK_EVERY == 0:
            on_look(report)
    if not options.trials:
        return report
    on_look(report)

    def make(stack: ExitStack, number: int) -> Agent:
        return _agent(stack, options, number, pods=2)

    return replace(report, trials=reloads_under_traffic(SIDES, make, options.trials, order, progress))


def _round(options: AbOptions, sides: Sequence[Reloads], order: random.Random, *, external: bool) -> tuple[Series, ...]:
    """Measure a round; return the exact series of its programs."""
    settle()
    held = HeldArrays()
    with ExitStack() as stack:
        agents: dict[int, Agent] = {}
        for number in _shuffled(order):
            agents[number] = _agent(stack, options, number)
            held.directories.append(agents[number].config.globals)
        held.hold()
        first = {number: _reload(agents[number]) for number in _shuffled(order)}
        exact = tuple(each for number in sorted(first) for each in footprint(first[number], side=SIDES[number]))
        for turn in _turns(order):
            for position, number in enumerate(turn):
                held.hold()
                before = resource.getrusage(resource.RUSAGE_SELF)
                outcome = _reload(agents[number])
                after = resource.getrusage(resource.RUSAGE_SELF)
                found = sides[number]
                found.user.append(after.ru_utime - before.ru_utime)
                found.system.append(after.ru_stime - before.ru_stime)
                found.outcomes.append(outcome)
                found.seconds.append(seconds_of(outcome, external=external))
                found.positions.append(position)
        held.let_go()
        last = held.pinned()
    wait_until_gone(last)
    return exact


def _before_load(options: AbOptions, number: int) -> list[Series]:
    """Return the exact series of what a side is about to load; none of a loader that is not ours."""
    with ExitStack() as stack:
        agent = _agent(stack, options, number)
        if agent.external is not None:
            return []
        pod = agent.node.pods[0].name
        template = agent.loader.templates.fetch(agent.endpoint(pod))
        return before_load(planned_objects(agent.plan(pod, generation=1), template), side=SIDES[number])


def _shuffled(order: random.Random) -> list[int]:
    numbers = list(range(len(SIDES)))
    order.shuffle(numbers)
    return numbers


def _turns(order: random.Random) -> list[tuple[int, int]]:
    """Return which side goes first in each turn of a round: who comes second is a little faster, by up to 7 %."""
    turns = [(0, 1), (1, 0)] * (RELOADS // 2)
    order.shuffle(turns)
    return turns


def _agent(stack: ExitStack, options: AbOptions, number: int, *, pods: int = 1) -> Agent:
    side = options.sides[number]
    spec = NodeSpec(f"bench-ab-{SIDES[number].lower()}", pods=pods, endpoint_routes=options.endpoint_routes)
    node = stack.enter_context(Node(spec))
    agent = Agent(node, library=side.library, defines=side.defines, loader=side.loader, attach=side.attach)
    if side.sleep:
        agent.change = lambda plan: replace(plan, steps=(*plan.steps, Sleep("reload", side.sleep)))
    stack.enter_context(agent)
    agent.sync()
    return agent


def _reload(agent: Agent) -> Outcome:
    return agent.reload(agent.node.pods[0].name)
