"""Releases of Cilium side by side: their reloads, their programs, packets, and what a reload and an upgrade disturb.

Each release is measured twice if it has a loader: by that, and by our own pipeline with the same C. Each has a node of
its own and one process of its loader, which stay, so that nothing is compiled anew between two rounds. All are
measured in turns. Two nodes that are made alike differ by some percent: `bench ab` has new ones in each round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from datapath.errors import ReloadlabError, WrongCall
from datapath.reload.outcome import Outcome
from datapath.reload.prepare import Compile, WriteObject
from lab.agent.agent import Agent
from lab.agent.releasefile import Release
from lab.bench.disturbance import Disturbance, disturb
from lab.bench.footprint import footprint
from lab.bench.held import HeldArrays
from lab.bench.pairs import Pair
from lab.bench.rounds import BackgroundLoad, Measurement, Progress, run_in_turns, warm_up
from lab.bench.steps import by_step, seconds_of, step_series
from lab.bench.traffic import ROUND_TRIP, UDP, compare_pairs
from lab.loaders.command import find_loader
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.results.result import STARVED, Course, Series, exact
from lab.results.subject import subject_of

QUIET = 2.0
"""Seconds of traffic while nothing is done to a node."""

_PHASES = {Compile.name: "fetch template", WriteObject.name: "write object"}
_LOAD = "load"
"""The phases of our own pipeline, as Cilium's loaders call theirs; every other step is of the last."""

_NOTHING, _RELOAD, _UPGRADE = "nothing is done", "all is reloaded", "upgrade from the release before"


@dataclass(frozen=True, slots=True)
class ReleasesOptions:
    """What to measure: `rounds` of reloads and of packets, `trials` of what is done under traffic.

    `sides` are what `sides_of` returns.
    """

    sides: Sequence[Release]
    rounds: int = 20
    trials: int = 3


class NoSides(WrongCall):
    """Releases that cannot be told apart, or none at all."""


def sides_of(releases: Sequence[Release]) -> list[Release]:
    """Return what is measured: each release, and once more by our own pipeline if it has a loader; NoSides."""
    sides: dict[str, Release] = {}
    for release in releases:
        both = [release]
        if release.loader is not None:
            both.append(replace(release, name=f"{release.name}, our pipeline", loader=None))
        for side in both:
            if side.name in sides:
                raise NoSides(f"two releases would be called {side.name}: give one of them another name")
            sides[side.name] = side
    if not sides:
        raise NoSides("the file names no release")
    return list(sides.values())


def subjects_of(sides: Sequence[Release]) -> dict[str, dict[str, str]]:
    """Return what a result says of each side."""
    return {each.name: subject_of(library=each.library, loader=each.loader, attach=each.attach) for each in sides}


@dataclass(slots=True)
class ReleasesReport:
    """The series until now, and the share of the CPUs that other processes had meanwhile."""

    rounds: int
    series: list[Series] = field(default_factory=list)
    others: float = 0.0

    def course(self) -> Course:
        """Return how it was measured."""
        return Course(rounds=self.rounds, discarded=warm_up(self.rounds))


@dataclass(slots=True)
class _Reloads:
    """The reloads of the first pod of a release, as a variant; `phases` are the seconds of each piece by name."""

    name: str
    agent: Agent
    outcomes: list[Outcome] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)

    def run(self) -> float:
        outcome = self.agent.reload(self.agent.node.pods[0].name)
        self.outcomes.append(outcome)
        self.phases.append(_phases(self.agent, outcome))
        return seconds_of(outcome, external=self.agent.external is not None)

    def series(self, measured: Measurement) -> Iterator[Series]:
        """Yield what was measured of the reloads that count, and the cost of the programs of the last one."""
        rounds = len(measured.seconds)
        whole = replace(measured.series("reload"), name="reload", side=self.name)
        yield whole
        if measured.refusal:
            return
        counted = self.phases[-rounds:]
        for phase in dict.fromkeys(name for each in counted for name in each):
            yield replace(whole, name=f"phase: {phase}", values=tuple(each.get(phase, 0.0) for each in counted))
        if self.agent.external is None:
            steps = by_step([(s, s.duration_ns) for s in outcome.spans] for outcome in self.outcomes[-rounds:])
            yield from step_series("our step", steps, "reload", side=self.name)
        found = footprint(self.outcomes[-1], side=self.name)
        programs = [each.values[0] for each in found if each.unit == "instructions"]
        if programs:
            yield exact("programs of a pod", "programs", len(programs), side=self.name)
            yield exact("verified instructions", "instructions", sum(programs), side=self.name)
        yield from found


def measure_releases(
    options: ReleasesOptions, progress: Progress, on_part: Callable[[ReleasesReport], object]
) -> ReleasesReport:
    """Measure everything; `on_part` is called with what there is after each part, so that it can be kept.

    What a release cannot do is a series with the reason. The caller has called lab.bench.topology.isolate_mounts.
    """
    report, background = ReleasesReport(options.rounds), BackgroundLoad()
    with ExitStack() as stack:
        agents = list(_started(stack, options, report, progress))
        parts = (_reloads, _packets, _reloads_under_traffic, _upgrades)
        for part in parts:
            report.series += part(agents, options, progress)
            report.others = background.share()
            on_part(report)
    return report


def _started(
    stack: ExitStack, options: ReleasesOptions, report: ReleasesReport, progress: Progress
) -> Iterator[tuple[Release, Agent]]:
    """Yield the releases that can be loaded, each with the agent of its node, which goes when `stack` closes."""
    for number, release in enumerate(options.sides, 1):
        progress(f"loading {release.name}")
        try:
            with ExitStack() as starting:
                node = starting.enter_context(Node(_spec(number)))
                agent = starting.enter_context(_agent(node, release))
                agent.start()
                stack.enter_context(starting.pop_all())
        except ReloadlabError as error:
            report.series.append(_refused("reload", "s", release, error))
            continue
        yield release, agent


def _spec(number: int) -> NodeSpec:
    return NodeSpec(f"bench-release-{number}", pods=2)


def _agent(node: Node, release: Release) -> Agent:
    loader = None if release.loader is None else find_loader(release.loader)
    return Agent(node, library=release.library, loader=loader, attach=release.attach)


def _phases(agent: Agent, outcome: Outcome) -> dict[str, float]:
    """Return the seconds of each phase: what the loader tells, or the steps of our own pipeline."""
    found: dict[str, float] = {}
    if agent.external is not None:
        pieces = [(name, work) for name, work in agent.external.done.spans]
    else:
        pieces = [(_PHASES.get(span.step, _LOAD), span.work) for span in outcome.spans]
    for name, work in pieces:
        found[name] = found.get(name, 0.0) + (work.end_ns - work.start_ns) / 1e9
    return found


def _reloads(agents: Sequence[tuple[Release, Agent]], options: ReleasesOptions, progress: Progress) -> Iterator[Series]:
    variants = [_Reloads(release.name, agent) for release, agent in agents]
    held = HeldArrays(*(agent.config.globals for _, agent in agents))
    measured = run_in_turns(
        variants, options.rounds, lambda text: progress(f"reloads: {text}"), held=held, tolerant=True
    )
    for variant, each in zip(variants, measured, strict=True):
        yield from variant.series(each)


def _packets(agents: Sequence[tuple[Release, Agent]], options: ReleasesOptions, progress: Progress) -> Iterator[Series]:
    pairs = [Pair(release.name, agent.node, agent.node) for release, agent in agents]
    for item in compare_pairs([pairs], pairs, options.rounds, progress, metrics=(UDP, ROUND_TRIP), tolerant=True):
        for group in item.groups:
            for row in group:
                name = f"packets: {item.metric.name}, IPv{item.version}"
                yield replace(item.series_of(row), name=name, side=row.name)


def _reloads_under_traffic(
    agents: Sequence[tuple[Release, Agent]], options: ReleasesOptions, progress: Progress
) -> Iterator[Series]:
    quiet = {release.name: partial(disturb, agent.node, partial(time.sleep, QUIET)) for release, agent in agents}
    reload = {release.name: partial(disturb, agent.node, agent.reload_all) for release, agent in agents}
    yield from _trials(_NOTHING, quiet, [release for release, _ in agents], options, progress)
    yield from _trials(_RELOAD, reload, [release for release, _ in agents], options, progress)


def _upgrades(
    agents: Sequence[tuple[Release, Agent]], options: ReleasesOptions, progress: Progress
) -> Iterator[Series]:
    able = [release for release, _ in agents]
    pairs: dict[str, tuple[Release, Release]] = {}
    for ours in (False, True):
        alike = [release for release in able if (release.loader is None) is ours]
        pairs |= {new.name: (old, new) for old, new in pairwise(alike)}
    upgrades = {name: partial(_upgrade, old, new) for name, (old, new) in pairs.items()}
    yield from _trials(_UPGRADE, upgrades, [new for _, new in pairs.values()], options, progress)


def _upgrade(old: Release, new: Release) -> Disturbance:
    """Take a new node from one release to another: its agent is gone, another one starts and reloads what it finds."""
    with Node(_spec(0)) as node:
        with _agent(node, old) as agent:
            agent.start()

        def restore() -> None:
            with _agent(node, new) as agent:
                agent.restore()

        return disturb(node, restore)


def _trials(
    what: str,
    trials: Mapping[str, Callable[[], Disturbance]],
    releases: Sequence[Release],
    options: ReleasesOptions,
    progress: Progress,
) -> Iterator[Series]:
    """Do the trials of all releases in turns. One that fails ends those of its release, with the reason."""
    done: dict[str, list[Disturbance]] = {release.name: [] for release in releases}
    failed: dict[str, ReloadlabError] = {}
    for number in range(options.trials):
        for release in releases:
            if release.name in failed:
                continue
            progress(f"{what}, {release.name}: {number + 1} of {options.trials}")
            try:
                done[release.name].append(trials[release.name]())
            except ReloadlabError as error:
                failed[release.name] = error
    for release in releases:
        found = done[release.name]
        if release.name in failed:
            yield _refused(f"worst delay: {what}", "s", release, failed[release.name])
            continue
        delays = tuple(each.worst_delay for each in found)
        worst = Series(f"worst delay: {what}", "s", delays, side=release.name, group=what)
        yield worst
        lost, starved = tuple(float(each.lost) for each in found), tuple(each.starved for each in found)
        yield replace(worst, name=f"lost: {what}", unit="packets", values=lost)
        yield replace(worst, name=f"{STARVED}: {what}", unit="share", values=starved)
        if what != _NOTHING:
            yield replace(worst, name=f"took: {what}", values=tuple(each.took for each in found))


def _refused(name: str, unit: str, release: Release, error: ReloadlabError) -> Series:
    return Series(name, unit, (), side=release.name, refusal=str(error))
