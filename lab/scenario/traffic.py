"""The traffic of a scenario: the policy that it needs, its phases between pauses, and bursts between steps."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from bpf import is_ours
from lab.abi.reasons import FIRST_DROP, POLICY_DENIED
from lab.agent.agent import Agent
from lab.node.node import Node
from lab.scenario.ends import meets
from lab.scenario.flowpolicy import FlowPolicy, PolicyOption, check_policy, flow_policy
from lab.system.pace import slowness
from lab.system.words import plural
from lab.traffic.flows import Flow, TrafficError
from lab.traffic.report import TrafficReport
from lab.traffic.traffic import BURST_TIMEOUT, Traffic
from lab.watch import metrics
from lab.watch.violation import Violation

STALL_AFTER, LATE_AFTER, START_TIMEOUT = 1.0, 0.5, 10.0
"""Seconds, of Traffic's options, on such a machine."""

PARTS = 200
"""Equal parts of a phase for each of which it is told how often packets were sent."""


class ScenarioTraffic:
    """Runs a scenario's flows on its nodes, from `start` to the end of the stack that it is given.

    `phases` are the reports: one, and one more for each pause. With the policy "flows" exactly the flows pass and the
    denied ones are dropped; without a policy nothing is denied, and the denied flows do not run. `foreign`: programs of
    other sources than ours will run, if none do yet.
    """

    def __init__(self, *, rate: float, policy: PolicyOption, foreign: bool = False) -> None:
        check_policy(policy)
        self.rate = rate
        self._foreign = foreign
        self.phases: list[TrafficReport] = []
        self._option = policy
        self._policy: FlowPolicy | None = None
        self._nodes: list[Node] = []
        self._flows: tuple[Flow, ...] = ()
        self._running: tuple[Flow, ...] = ()
        self._paused = False
        self._silent = False
        self._sent_at: dict[str, list[int]] = {}
        self._stack = ExitStack()
        self.traffic: Traffic

    def start(self, stack: ExitStack, agents: Sequence[Agent], flows: Sequence[Flow]) -> None:
        """Apply the policy and start the flows, all but the denied ones.

        TrafficError if they cannot start, with what the nodes' programs have dropped meanwhile.
        """
        self._stack = stack
        self._nodes = [agent.node for agent in agents]
        self._flows = tuple(flows)
        self._running = tuple(flow for flow in flows if self._option is not None or not flow.denied)
        if self._option is not None:
            foreign = self._foreign or any(not is_ours(agent.config.library) for agent in agents)
            self._policy = flow_policy(self._nodes, flows, foreign=foreign)
            for agent in agents:
                agent.exchange_policies(self._policy.documents[agent.node.name])
        before = [metrics.packets(node) for node in self._nodes]
        try:
            self.traffic = stack.enter_context(self._new_traffic(muted=self._denied_flows))
        except TrafficError as error:
            dropped = [*map(_dropped_since, before, self._nodes)]
            raise TrafficError("; ".join(filter(None, (str(error), *dropped)))) from error

    def begin(self) -> None:
        """Start the denied flows as well: from here on each of their packets moves a counter that is known."""
        self.traffic.mute([])

    def stop_denied(self) -> None:
        """Stop the denied flows for good: what becomes of them under other policies is not known here."""
        if self._denied_flows and not self._paused:
            self.traffic.mute(self._denied_flows)
        self._running = tuple(flow for flow in self._running if not flow.denied)

    @property
    def _denied_flows(self) -> list[str]:
        return [flow.name for flow in self._running if flow.denied]

    def pause(self) -> TrafficReport | None:
        """Stop the traffic and return the report of this phase; None if it is paused already."""
        if self._paused:
            return None
        self._paused = True
        report = self.traffic.stop()
        self.phases.append(report)
        for name, times in self.traffic.sent_at.items():
            self._sent_at.setdefault(name, []).extend(times)
        return report

    def resume(self) -> None:
        """Start the traffic anew after a pause, with new connections."""
        if not self._paused:
            raise TrafficError("the traffic is not paused")
        self._paused = False
        self.traffic = self._stack.enter_context(self._new_traffic())

    def _new_traffic(self, muted: Sequence[str] = ()) -> Traffic:
        """Return the traffic of a phase; a slow machine sends less in a second, and has more time for each packet."""
        slow = slowness()
        return Traffic(
            self._running,
            rate=self.rate / slow,
            stall_after=STALL_AFTER * slow,
            late_after=LATE_AFTER * slow,
            start_timeout=START_TIMEOUT * slow,
            muted=muted,
        )

    @property
    def mute_because(self) -> str:
        """Why `push` sends nothing; empty if it sends."""
        if self.rate == 0:
            return "the scenario has rate=0"
        if not self._running:
            return "it has no flows"
        return "its traffic is paused" if self._paused else "a packet was not answered before" if self._silent else ""

    def push(self) -> list[Violation]:
        """Send a packet over each flow between two steps and wait for all; return what was not answered.

        Nothing is sent during a pause, in a scenario that has no traffic of its own, and after the first finding: one
        that stays silent is enough, each more of them would take as long.
        """
        if self.mute_because:
            return []
        at = time.monotonic_ns()
        timeout = BURST_TIMEOUT * slowness()
        bursts = self.traffic.burst_all(1, [flow.name for flow in self._running], timeout=timeout)
        # What arrives of a denied flow is found when the traffic ends.
        silent = [burst for burst in bursts if not burst.complete and not burst.denied]
        self._silent = bool(silent)
        what = f"a packet between two steps was not answered within {timeout:g} s"
        return [Violation(7, f"{burst.flow}: {what}", (at,), burst.flow) for burst in silent]

    def sent_in_parts(self, report: TrafficReport) -> list[int]:
        """Return how often packets were sent in each of PARTS equal parts of a phase that is over."""
        return count_in_parts(self._sent_at.values(), report.started_ns, report.stopped_ns)

    def refused(self, node: str) -> Counter[tuple[int, int]]:
        """Return how many packets of denied flows must have been dropped on a node, by reason and direction."""
        found: Counter[tuple[int, int]] = Counter()
        refusals = {} if self._policy is None else self._policy.refusals
        for name, count in ((name, count) for report in self.phases for name, count in report.denied.items()):
            where, direction = refusals.get(name, ("", 0))
            if where == node:
                found[POLICY_DENIED, direction] += count
        return found

    def sent_to(self, subject: str) -> list[int]:
        """Return when packets were sent, in the phases so far, that meet a subject's programs and are answered.

        `subject` is that of a timeline: pod-1, or 2/pod-1 if there are several nodes.
        """
        number, _, name = subject.rpartition("/")
        node = self._nodes[int(number or 1) - 1]
        met = [flow for flow in self._flows if not flow.denied and meets(flow, self._nodes, node, name)]
        return sorted(at for flow in met for at in self._sent_at.get(flow.name, ()))


def count_in_parts(times: Iterable[Sequence[int]], start_ns: int, end_ns: int, parts: int = PARTS) -> list[int]:
    """Return how many times lie in each of some equal parts of [start_ns, end_ns); those of each flow are in order."""
    bounds = [start_ns + (end_ns - start_ns) * number // parts for number in range(parts + 1)]
    counts = [0] * parts
    for ordered in times:
        places = [bisect_left(ordered, bound) for bound in bounds]
        counts = [count + last - first for count, first, last in zip(counts, places, places[1:], strict=False)]
    return counts


def _dropped_since(before: Mapping[tuple[int, int], int], node: Node) -> str:
    """Return what a node's programs have dropped since its counters were `before`, for people; empty if nothing."""
    more = {key: count - before.get(key, 0) for key, count in metrics.packets(node).items()}
    found = [
        f"{plural(count, 'packet')} as {metrics.describe(*key)}"
        for key, count in sorted(more.items())
        if count and key[0] >= FIRST_DROP
    ]
    return f"{node.name} dropped meanwhile {', '.join(found)}" if found else ""
