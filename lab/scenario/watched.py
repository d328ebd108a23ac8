"""Nodes under watch: traffic over them, their state before, and all checks at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from bpf import is_ours
from datapath.base.mapnames import METRICS
from datapath.endpoint import Attachment
from datapath.errors import ReloadlabError
from datapath.reload.outcome import FailedReload, Outcome
from datapath.reload.step import Plan
from datapath.reload.transaction import Observer
from lab.agent.agent import Agent
from lab.loaders.protocol import NONE, ROLLBACK, LoaderFailed, NotSupported
from lab.node.topology import HEALTH, HOST, NODE
from lab.scenario.causes import Causes
from lab.scenario.coverage import Coverage, coverage, starved_in
from lab.scenario.flowpolicy import PolicyOption
from lab.scenario.gate import Gate, GateNeverFired
from lab.scenario.history import History
from lab.scenario.packetfile import PacketFile
from lab.scenario.shapes import shapes_of
from lab.scenario.stepping import Bursts, Stepping, check_bursts
from lab.scenario.timeline import Timeline
from lab.scenario.traffic import ScenarioTraffic
from lab.scenario.verdict import InvariantsViolated, NoVerdict
from lab.system.pace import slowness
from lab.traffic.flows import Flow
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import Traffic
from lab.watch import metrics
from lab.watch.checks.hits import check_hits
from lab.watch.checks.kernel_log import check_kernel_log
from lab.watch.checks.objects import endpoint_files, read_objects
from lab.watch.drops import NOTHING, Drops
from lab.watch.invariants import (
    Baseline,
    Expected,
    baseline,
    check,
    check_files,
    check_kernel_drops,
    check_traffic,
    check_unchanged,
    check_warnings,
)
from lab.watch.journal import Journal
from lab.watch.kernel_log import KernelLog, KernelLogUnavailable
from lab.watch.snapshot import take
from lab.watch.violation import Violation

T = TypeVar("T")

MOST_STARVED = 0.5
"""The part of the time of all reloads in which the traffic may have had no CPU."""


class Watched:
    """What is common to a scenario on one node and on several: traffic over them, and the checks at the end.

    A context manager. Leaving it without an exception checks every invariant on every node and raises
    InvariantsViolated. `agents` are the agents of its nodes, in the nodes' order, once it is up. `coverage` says how
    many steps of reloads had packets under way, once it has finished, `gaps` what was not checked.
    """

    def __init__(self, *, rate: float, bursts: Bursts, policy: PolicyOption, foreign: bool = False) -> None:
        check_bursts(bursts)
        self._stack = ExitStack()
        self._expected = Expected()
        self._expected_on: dict[str, Expected] = {}
        self._abandoned = False
        self._new_policies = False
        self._history = History()
        self.violations: list[Violation] = []
        self.gaps: list[str] = []
        self.coverage = Coverage()
        self._counters: dict[str, metrics.Counters] = {}
        self._finished = False
        self._refused: list[NotSupported] = []
        self._traffic = ScenarioTraffic(rate=rate, policy=policy, foreign=foreign)
        self._stepping = Stepping(bursts, self._push)
        self.agents: tuple[Agent, ...] = ()
        self.kernel_log = KernelLog()
        self.drops: Drops
        self._causes = Causes(NOTHING, self._history.generations_at)
        self._journals: dict[str, Journal] = {}
        self._before: tuple[tuple[Agent, Baseline], ...]
        self._packets: PacketFile | None = None
        self.gates: list[Gate] = []
        self._shapes: list[dict[str, Any]] | None = None

    def _watch(self, stack: ExitStack, agents: Sequence[Agent], flows: Sequence[Flow]) -> None:
        """Start the traffic, remember how everything is, and keep what `stack` holds until the scenario ends."""
        self.agents = tuple(agents)
        # Traffic that begins after a pause ends with the others.
        self._traffic.start(stack.enter_context(ExitStack()), agents, flows)
        self.drops = stack.enter_context(Drops([agent.node for agent in agents], flows))
        try:
            stack.enter_context(self.kernel_log)
        except KernelLogUnavailable as error:
            self.gaps.append(f"the kernel's log is not read: {error}")
        self._journals = {a.node.name: stack.enter_context(Journal(a.node.netns(NODE))) for a in agents}
        self._before = tuple((agent, baseline(agent)) for agent in agents)
        self._traffic.begin()
        self._listen()
        self._stack = stack.pop_all()

    def _listen(self) -> None:
        """Have all agents tell what they do."""
        self._history.hear(self.agents)
        for agent in self.agents:
            agent.on_reload = partial(self._observer, agent)
            agent.on_policies = self._note_policies

    def _note_policies(self) -> None:
        self._new_policies = True
        self._traffic.stop_denied()

    def _replace(self, old: Agent, make: Callable[[], Agent]) -> Agent:
        """End an agent, and watch the one that is made in its place, on the same node; return that."""
        old.close()
        new = self._stack.enter_context(make())
        self._note_not_supported(old)
        ours = {is_ours(agent.config.library) for agent in (old, new)}
        if ours != {True}:
            self.expect(foreign=True)
        if len(ours) > 1:
            self.expect(other_path=True)
        new.take_over(old)
        self.agents = tuple(new if agent is old else agent for agent in self.agents)
        self._before = tuple((new if agent is old else agent, before) for agent, before in self._before)
        self._listen()
        return new

    def expect_replaced(self) -> None:
        """Declare that the maps are replaced that reloads so far say that they have replaced."""
        said = {name for outcome in self.outcomes for name in outcome.migrated}
        self.expect(migrated=self._expected.migrated | said)

    def expect_upgraded(self, agent: Agent, migrated: Iterable[str]) -> None:
        """Declare what another release may do: replace maps, as it has these, and leave maps of its own.

        What is in a map that was replaced is held to what was there before, connections to their lives; counters of
        policies may begin anew.
        """
        replaced = frozenset(migrated)
        # Of a loader that leaves no object files, the templates tell.
        endpoints = (agent.endpoint(name) for name in (HOST, HEALTH))
        specs = [agent.loader.templates.fetch(endpoint).image.spec for endpoint in endpoints]
        specs += [each.spec for each in read_objects(agent) if each.spec is not None]
        declared = {name for spec in specs for name in spec.maps}
        if METRICS in replaced - self._expected.migrated:
            self.leave_out(f"drops as {METRICS} counts them, which was replaced: both maps are counted in meanwhile")
        changed = self._expected.changed
        known = dict(changed) if isinstance(changed, Mapping) else dict.fromkeys(changed, _is_any)
        self.expect(
            migrated=self._expected.migrated | replaced,
            changed={**{name: () for name in replaced}, **known},
            pins=self._expected.pins | declared,
        )

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if kind is None and not self._abandoned:
                self.finish()

    def finish(self) -> None:
        """Stop the traffic and check everything; once. Called when the block ends.

        Raises InvariantsViolated, or NoVerdict if nothing was found because the traffic could not run.
        """
        __tracebackhide__ = True
        if self._finished:
            return
        self._finished = True
        self._check_hits()
        self.pause()
        if self._traffic.rate > 0 and self.sent == 0:
            self.violations.append(Violation(7, "no packet was sent; a scenario without traffic has rate=0"))
        for agent, before in self._before:
            self._check(agent, before)
        dropped = self.drops.read()
        self._causes = Causes(dropped, self._history.generations_at)
        self.gaps += dropped.gaps
        self.violations += check_kernel_drops(dropped, self.phases, self._expected)
        self.violations += check_kernel_log(self.kernel_log)
        if self.kernel_log.overwritten:
            self.gaps.append("the kernel's log has run over: lines were lost before they were read")
        self.gaps += self.packet_gaps
        for agent in self.agents:
            self._note_not_supported(agent)
        self.coverage = coverage(self.timeline.reloads, self._traffic.sent_to)
        self._shapes = shapes_of(self.agents)
        if self.violations:
            raise InvariantsViolated(self.findings)
        starved, total = self._starved
        if starved > total * MOST_STARVED:
            raise NoVerdict(starved, total)

    @property
    def _starved(self) -> tuple[int, int]:
        """For how long the traffic did not run during reloads, and how long they took, in nanoseconds."""
        pauses = [pause for report in self.phases for pause in report.starved]
        return starved_in(self.timeline.reloads, pauses)

    @property
    def starved_part(self) -> float:
        """The part of the time of the reloads in which the traffic had no CPU; without a verdict above MOST_STARVED."""
        starved, total = self._starved
        return starved / total if total else 0.0

    def _note_not_supported(self, agent: Agent) -> None:
        """Say what the loader of an agent has left to ours."""
        if agent.external is not None:
            missing = list(agent.not_supported)
            if agent.external.greeting.objects == NONE:
                missing.append("object files, to which programs and slots could be compared (invariant 4)")
            self.gaps += [f"not supported by loader {agent.external.name}: {what}" for what in missing]
            self._refused += agent.refused

    @property
    def refused(self) -> list[NotSupported]:
        """What loaders were asked for that they do not do."""
        return [*self._refused, *(error for agent in self.agents for error in agent.refused)]

    def noted(self, gate: Gate | None) -> Gate | None:
        """Remember a gate before a reload goes through it: the report tells where and when it stopped reloads."""
        if gate is not None and gate not in self.gates:
            self.gates.append(gate)
        return gate

    def check_fired(self, gate: Gate | None, names: Sequence[str], cause: ReloadlabError | None = None) -> None:
        """Raise GateNeverFired if a gate should have; NotSupported if the loader has nothing that it could stand at."""
        if gate is None:
            return
        try:
            gate.check_fired(names, cause)
        except GateNeverFired:
            for agent in self.agents:
                if agent.external is not None:
                    agent.refuse("gates at calls that it does not make" if gate.at_calls else "gates at our own steps")
            raise

    def leave_out(self, what: str) -> None:
        """Say what a scenario does not check, because the C sources do not promise it: the report tells it (`gaps`)."""
        self.gaps.append(what)

    def _check_hits(self) -> None:
        """Send one more packet over each flow: it must meet the loads that are there now, and no other.

        Where none can be sent, or counters of loads were evicted meanwhile, that is a gap.
        """
        replaced = {agent.node.name: self._history.replaced_on(agent.node.name) for agent in self.agents}
        if (why := self._traffic.mute_because) and any(replaced.values()):
            self.gaps.append(f"no last packet was sent to see which loads are met: {why}")
        before = [metrics.read(agent.node) for agent in self.agents]
        self._push()
        for agent, counters in zip(self.agents, before, strict=True):
            now = metrics.read(agent.node)
            self._found(agent, list(check_hits(counters, now, replaced[agent.node.name])))
        for agent, start in self._before:
            now = metrics.read(agent.node)
            if not (evicted := now.evicted_since(start.counters)):
                self._counters[agent.node.name] = now
            else:
                said = f"{evicted} counters of loads made room for others in reloadlab_hits, which is too small"
                self.gaps.append(f"{agent.node.name}: {said}")

    def _check(self, agent: Agent, before: Baseline) -> None:
        name = agent.node.name
        expected = self._expected_on.get(name, self._expected)
        expected = expected.and_also(drops=Counter(expected.drops) + self._traffic.refused(name))
        loads = self._history.loads_on(name)
        journal = self._journals[name]
        found = check(
            agent,
            before,
            expected=expected,
            outcomes=loads,
            undone=self._history.undone_on(name),
            drops=self.drops,
            journal=journal,
            new_policies=self._new_policies,
        )
        self.gaps += [f"{name}: {gap}" for gap in journal.stop().gaps]
        sharers = {loaded.sharer for each in loads for loaded in each.loaded if loaded.sharer}
        own_maps = "calls maps of its own for each load (invariant 4)"
        self.gaps += [f"not supported by loader {sharer}: {own_maps}" for sharer in sorted(sharers)]
        if agent.config.attach is Attachment.TCX or any(each.by_tcx for each in loads):
            self.gaps.append("tcx hooks between two looks: the kernel tells nothing of them, packets alone do")
        found += check_warnings(loads, expected)
        self._found(agent, found)

    def _found(self, agent: Agent, violations: Sequence[Violation]) -> None:
        """Remember what was found on a node, with its name if there are several."""
        several = len(self.agents) > 1
        self.violations += [violation.on(agent.node.name) for violation in violations] if several else violations

    @property
    def findings(self) -> list[Violation]:
        """The violations found so far, with the steps of reloads during which they happened.

        Once the scenario has finished, they also say what dropped the packets that were lost.
        """
        return [self._placed(violation) for violation in self.violations]

    def _placed(self, violation: Violation) -> Violation:
        if not violation.at:
            return violation
        word = "sent " if violation.invariant == 7 else ""
        cause = self._causes.text(violation.loser, violation.at) if violation.loser else ""
        where = f"{word}{self.timeline.places(violation.at)}{'; ' * bool(cause)}{cause}"
        return replace(violation, what=f"{violation.what}, {where}")

    def _observer(self, agent: Agent, plan: Plan) -> Observer | None:
        """Return who looks on at a reload of this process."""
        return self._stepping.observer(agent.config, plan)

    def _push(self) -> None:
        self.violations += self._traffic.push()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """The reloads since the scenario began, whoever asked the agents for them, in the order of their ends."""
        return tuple(outcome for _, outcome in self._history.outcomes)

    @property
    def outcomes_by_node(self) -> list[tuple[int, Outcome]]:
        """The same, each with the number of its node."""
        return [(self._number(node), outcome) for node, outcome in self._history.outcomes]

    def entered(self, node: int, generation: int) -> dict[str, int] | None:
        """Return the packets that entered a load's programs, by program, on the node of that number; None if unknown.

        They are known when the scenario has finished, of programs that count them, ours, as long as no counter has made
        room for another.
        """
        name = self.agents[node - 1].node.name
        counters = self._counters.get(name) if self._history.counts(name, generation) else None
        return None if counters is None else counters.entered(generation)

    @property
    def failures_by_node(self) -> list[tuple[int, FailedReload]]:
        """The reloads that failed since the scenario began, each with the number of its node."""
        return [(self._number(node), failed) for node, failed in self._history.failures]

    @property
    def shapes(self) -> list[dict[str, Any]]:
        """The nodes as run.json has them: as they were when the scenario finished, before that as they are now."""
        return shapes_of(self.agents) if self._shapes is None else self._shapes

    def _number(self, node: str) -> int:
        """Return the number of a node among those of the scenario, from 1."""
        return [agent.node.name for agent in self.agents].index(node) + 1

    @property
    def timeline(self) -> Timeline:
        """Every step of every reload since the scenario began, of failed ones as well."""
        return self._history.timeline

    @property
    def traffic(self) -> Traffic:
        """The traffic of the present phase."""
        return self._traffic.traffic

    @property
    def phases(self) -> list[TrafficReport]:
        """The reports of the traffic that was stopped: one at the end, and one more for each pause."""
        return self._traffic.phases

    def sent_in_parts(self, report: TrafficReport) -> list[int]:
        """Return how often packets were sent in equal parts of the phase that a report is of."""
        return self._traffic.sent_in_parts(report)

    @property
    def sent(self) -> int:
        """Packets of the traffic until it was last stopped, all phases together."""
        return sum(report.sent for report in self.phases)

    @property
    def lost(self) -> int:
        """Those of them that were lost."""
        return sum(report.lost for report in self.phases)

    def _fails(
        self, names: Sequence[str], reload: Callable[[], object], error: type[ReloadlabError], gate: Gate | None
    ) -> ReloadlabError:
        """Reload, expecting this error, and hold all nodes to it: they must be as before. Returns the error."""
        __tracebackhide__ = True
        for agent in self.agents:
            agent.require(ROLLBACK, "the old state after a reload that has failed")
        before = [(agent, take(agent.node), endpoint_files(agent)) for agent in self.agents]
        # Other loaders have errors of their own.
        external = any(agent.external is not None for agent in self.agents)
        wanted = (error, LoaderFailed) if external else (error,)
        try:
            reload()
        except wanted as raised:
            for agent, snapshot, files in before:
                self._found(agent, check_unchanged(snapshot, take(agent.node)))
                self._found(agent, check_files(files, endpoint_files(agent)))
            self.check_fired(gate, names, raised)
            return raised
        self.check_fired(gate, names)
        raise AssertionError(f"reload of {', '.join(names)} succeeded, {error.__name__} expected")

    def pause(self) -> None:
        """Stop the traffic, before something that interrupts it say; what has gone wrong until then is remembered."""
        report = self._traffic.pause()
        if report is not None:
            # Packets that wait for CPUs which are kept from running overtake each other, whatever the programs do.
            in_order = slowness() == 1
            self.violations += check_traffic(report, self._expected, in_order=in_order)
            if not in_order and any(flow.count("reordered") for flow in report.flows):
                self.leave_out("the order of packets: on a slow machine they overtake each other by themselves")

    def resume(self) -> None:
        """Start the traffic anew after a pause, with new connections."""
        self._traffic.resume()

    def capture(self, path: Path) -> None:
        """Capture packets from now on, so that `write_packets` can write those around the findings; CaptureFailed."""
        self._packets = self._stack.enter_context(PacketFile(path, [agent.node for agent in self.agents]))

    @property
    def packet_gaps(self) -> list[str]:
        """What the capture of packets has missed, as texts."""
        return [] if self._packets is None else self._packets.gaps

    def write_packets(self) -> Path | None:
        """Write the packets around the findings so far; return the file. None without packets, or without capture.

        CaptureFailed or BadDirectory if it cannot be written.
        """
        times = [at for violation in self.violations for at in violation.at]
        return None if self._packets is None else self._packets.write(times)

    def keep(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that ends with the scenario; return its value."""
        return self._stack.enter_context(context)

    def abandon(self) -> None:
        """Check nothing when the block ends: the scenario has failed already, by itself."""
        self._abandoned = True

    def note_unchecked(self) -> None:
        """Say that the test has failed before anything was checked: without packets sent, none lost says nothing."""
        if not self._finished:
            self.leave_out("packets and invariants: the test had failed before")

    def expect(self, **changes: Any) -> None:
        """Say what this scenario does on purpose: fields of invariants.Expected; on every node."""
        self._expected = self._expected.and_also(**changes)


def _is_any(key: bytes) -> bool:
    """Take any key for one whose entry may change."""
    return True
