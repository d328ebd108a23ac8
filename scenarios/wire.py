"""Asks what stands in a table, with real packets, and holds every counter to it.

The rules that decide have moved by exactly the packets that were sent, on the side that they protect, and no other;
what was dropped is counted on the right node, for the right reason, once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from reloadlab import (
    DROPPED,
    HOST,
    HOST_ID,
    METRIC_EGRESS,
    METRIC_INGRESS,
    NODE,
    OUTSIDE,
    PROTOCOLS,
    REMOTE_NODE_ID,
    WORLD_ID,
    Address,
    ClusterScenario,
    Counters,
    End,
    Node,
    PolicyKey,
    Probe,
    Result,
    cidrs,
    ends,
    exchange,
    is_ours,
    packet_counters,
    parse_policies,
    rule_counters,
)
from scenarios.neighbours import known_neighbours
from scenarios.tables import ANSWERED, ANYTHING, FRAGMENT, TOO_BIG, Case, Chapter, Rule

QUIET = (HOST, "client", "server", "stranger")
"""Whose rules are watched: nothing else is to talk to them meanwhile."""
BESIDE = 200.0
"""Packets a second of other traffic: a gate at which questions are asked lasts 0.2 s and more."""
ENOUGH = 20
"""Wrong answers after which no more is asked: what is not answered takes its time."""
UNPOLICED = "fragments to a pod with endpoint routes: these sources deliver untracked ones without asking its policy"
UNKNOWN_SOLICITATION = 150
"""Why Cilium's programs drop what kernels ask by themselves (invariant 6)."""
_RESERVED = {"any": 0, "host": HOST_ID, "world": WORLD_ID, "remote-node": REMOTE_NODE_ID}

Moved = dict[tuple[int, str, PolicyKey], int]
"""Packets (or bytes) that policy entries have decided on, by (node, endpoint, key)."""


@dataclass(frozen=True, slots=True)
class Question:
    """A case between two nodes, with one IP version."""

    chapter: Chapter
    case: Case
    here: int
    there: int
    version: int
    nodes: Mapping[int, Node]

    def __str__(self) -> str:
        ends = f"{self.here}/{self.case.source} -> {self.there}/{self.case.target} IPv{self.version}"
        return f"{self.chapter.name}: {ends} {self.case.what}"

    @property
    def mtu(self) -> int:
        """What fits into a packet on the way, bytes."""
        spec = self.nodes[self.here].spec
        return spec.mtu if self.case.source in (HOST, NODE, OUTSIDE) else spec.route_mtu

    def fate(self, *, fragments: bool) -> str | int:
        """Return the outcome, if the programs track fragments or do not."""
        return FRAGMENT if self.case.what.size == "fragments" and not fragments else self.case.outcome

    def counted_at(self, fate: str | int) -> tuple[int, int]:
        """Return the node and the direction in which a drop is counted."""
        if fate == FRAGMENT:
            return (self.there, METRIC_INGRESS) if self.case.source == OUTSIDE else (self.here, METRIC_EGRESS)
        if not self.chapter.egress:
            return self.there, METRIC_INGRESS
        # What the host sends through cilium_host is counted as coming into the datapath.
        spec = self.nodes[self.here].spec
        inwards = self.chapter.subject == HOST and self.case.target != OUTSIDE
        inwards &= not spec.endpoint_routes if self.here == self.there else spec.tunnel
        return self.here, METRIC_INGRESS if inwards else METRIC_EGRESS

    def told(self, fate: str | int) -> str:
        """Return the error that the sender gets: of what its own interface drops, ICMPv6 alone tells."""
        if fate == TOO_BIG:
            return TOO_BIG
        by_host = isinstance(fate, int) and self.case.source in (HOST, NODE) and self.chapter.egress
        return DROPPED if by_host and (self.case.what.protocol, self.version) == ("icmp", 6) else ""

    def rules(self, fate: str | int, frames: int, *, firewall: bool, ours: bool) -> Moved:
        """Return how entries move: the sender's once a connection, the receiver's with each packet.

        `firewall`: the host has entries that somebody asks. Other programs than `ours`, Cilium's, ask the sender's for
        each packet as well.
        """
        moved: Moved = {}
        for number, end, egress in ((self.here, self.case.source, True), (self.there, self.case.target, False)):
            name = HOST if end == NODE else end
            if fate in (FRAGMENT, TOO_BIG) or name == OUTSIDE or (name == HOST and not firewall):
                continue
            mine = (name, egress) == (self.chapter.subject, self.chapter.egress)
            dropped = mine and isinstance(fate, int)
            rule = self.case.rule if mine else ANYTHING
            if rule is not None:
                moved[number, name, self._key(rule, number, egress)] = 1 if ours and egress and not dropped else frames
            if dropped:
                break
        return moved

    def _key(self, rule: Rule, number: int, egress: bool) -> PolicyKey:
        who, protocol, port = rule
        if who == "cidr":
            outside = self.nodes[number].spec.outside4.ip if self.version == 4 else self.nodes[number].spec.outside6.ip
            identity = next(i for n, i in cidrs(parse_policies(self.chapter.document)).items() if outside in n)
        else:
            identity = _RESERVED[who] if who in _RESERVED else self.nodes[number].pod(who).identity
        if isinstance(protocol, str):
            protocol = PROTOCOLS["ICMP" if self.version == 4 else "ICMPV6"]
        return PolicyKey(identity, egress, protocol, port)


@dataclass(frozen=True, slots=True)
class _Counted:
    """All counters of a node at one moment."""

    drops: Counters
    rules: Mapping[tuple[str, PolicyKey], tuple[int, int]]


class Wire:
    """Asks every case of a chapter on a cluster, and keeps the account of all drops for the scenario's end.

    A context manager: everything passes again behind it, and the scenario is held to the drops that were expected.
    """

    def __init__(
        self,
        cluster: ClusterScenario,
        *,
        fragments: bool = False,
        firewall: bool = False,
        to: Sequence[int] = (),
        lenient: bool = False,
    ) -> None:
        """Ask between all nodes, or only what goes to the nodes `to`.

        `fragments` and `firewall`: the programs track fragments, and have the host's policy. `lenient`: a receiver's
        rules may count a packet twice, which is noted in `asked_twice`.
        """
        self._cluster = cluster
        self._ours = is_ours(cluster.agents[0].config.library)
        self._fragments, self._firewall = fragments, firewall
        self._nodes = dict(enumerate(cluster.cluster.nodes, 1))
        self._ends = {number: {**ends(node), NODE: _underlay(node)} for number, node in self._nodes.items()}
        self._ports = itertools.count(20000)
        self._drops: dict[int, Counter[tuple[int, int]]] = {number: Counter() for number in self._nodes}
        self._to = tuple(to) or tuple(self._nodes)
        self.lenient = lenient
        self.asked = 0
        self.asked_twice = 0
        self._wrong = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        cluster = self._cluster
        self._stack.enter_context(known_neighbours(cluster.cluster.nodes, cluster.agents[0].config.library))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with self._stack:
            if kind is None:
                self._cluster.cluster.apply_policies([])
        if kind is None:
            for number, drops in self._drops.items():
                self._cluster.expect_on(number, drops=dict(drops))

    def run(self, chapters: Iterable[Chapter]) -> list[str]:
        """Apply each chapter's policy, ask its cases; return a line for each that went otherwise, or the first few."""
        wrong: list[str] = []
        for each in chapters:
            self._cluster.cluster.apply_policies(each.document)
            for case in each.cases:
                wrong += self.ask(each, case)
        return wrong

    def ask(self, each: Chapter, case: Case) -> Iterator[str]:
        """Send a case's packets between all places, IPv4 and IPv6; yield a line for all that was wrong."""
        before = self._count()
        for here, there in itertools.product(self._nodes, self._to):
            near = here == there
            if case.near not in (None, near) or (OUTSIDE in (case.source, case.target) and not near):
                continue
            for version in (4, 6):
                if self._wrong > ENOUGH:
                    return
                question = Question(each, case, here, there, version, self._nodes)
                if self._is_unpoliced(question):
                    self._cluster.leave_out(UNPOLICED)
                    continue
                # What moves between two questions is in the second one's account.
                wrong, before = self._answer(question, before)
                if wrong:
                    self._wrong += 1
                    yield f"{question}: {'; '.join(wrong)}" if self._wrong <= ENOUGH else "and so on"

    def _answer(self, question: Question, before: Mapping[int, _Counted]) -> tuple[list[str], dict[int, _Counted]]:
        """Send the packets once; return whatever is not as it must be, and the counters after it."""
        self.asked += 1
        probe = question.case.what.probe(question.version, question.mtu)
        frames, length = probe.frames(question.version, question.mtu)
        fate = question.fate(fragments=self._tracked(question.version))
        expected: dict[int, Counter[tuple[int, int]]] = {number: Counter() for number in self._nodes}
        if isinstance(fate, int):
            number, direction = question.counted_at(fate)
            expected[number][fate, direction] = frames
            self._drops[number][fate, direction] += frames
        result = self._exchange(question, probe, before, expected, frames)
        after = self._count()
        if probe.protocol == "tcp" and fate == ANSWERED:
            frames, length = result.segments, 0
        moved, lengths = _moved(before, after)
        wanted = question.rules(fate, frames, firewall=self._firewall, ours=self._ours)
        twice = {place: count if place[2].egress else 2 * count for place, count in wanted.items()}
        if self.lenient and moved == twice != wanted:
            self.asked_twice += 1
            moved, length = wanted, 2 * length
        told = question.told(fate)
        wrong = []
        if result != _promised(probe, fate, told, result):
            wrong.append(f"{result}, not {fate} {told}")
        if (dropped := self._dropped(before, {number: counted.drops for number, counted in after.items()})) != expected:
            wrong.append(f"dropped {dropped}, not {expected}")
        if moved != wanted:
            wrong.append(f"entries moved {moved}, not {wanted}")
        # The headers that TCP chooses are the kernel's affair.
        elif fate == ANSWERED and length and any(n != length for (*_, key), n in lengths.items() if not key.egress):
            wrong.append(f"entries moved {lengths} bytes, not {length}")
        return wrong, after

    def _tracked(self, version: int) -> bool:
        """Tell whether the programs track fragments; Cilium's do those of IPv4 only."""
        return self._fragments and (self._ours or version == 4)

    def _is_unpoliced(self, question: Question) -> bool:
        """Tell whether Cilium's programs deliver what they cannot read: they return an error where a verdict is due."""
        if self._ours or self._tracked(question.version) or question.case.what.size != "fragments":
            return False
        return question.case.source == OUTSIDE and self._nodes[question.there].spec.endpoint_routes

    def _exchange(
        self,
        question: Question,
        probe: Probe,
        before: Mapping[int, _Counted],
        expected: Mapping[int, Mapping[tuple[int, int], int]],
        frames: int,
    ) -> Result:
        case, version = question.case, question.version
        # Where none may be lost, nothing is left to wait for once all of them are.
        lost = sum(sum(drops.values()) for drops in expected.values()) or frames

        def settled() -> bool:
            return lost <= sum(sum(drops.values()) for drops in self._dropped(before, self._drops_now()).values())

        return exchange(
            Address(*_end(self._ends[question.here][case.source], version), next(self._ports)),
            Address(*_end(self._ends[question.there][case.target], version), probe.port),
            probe,
            settled=settled,
        )

    def _drops_now(self) -> dict[int, Counters]:
        return {number: Counters(packet_counters(node)) for number, node in self._nodes.items()}

    def _count(self) -> dict[int, _Counted]:
        drops = self._drops_now()
        return {number: _Counted(drops[number], rule_counters(node, *QUIET)) for number, node in self._nodes.items()}

    def _dropped(
        self, before: Mapping[int, _Counted], now: Mapping[int, Counters]
    ) -> dict[int, dict[tuple[int, int], int]]:
        ignored = () if self._ours else (UNKNOWN_SOLICITATION,)
        dropped = {number: now[number].drops_since(counted.drops) for number, counted in before.items()}
        return {n: {key: count for key, count in of.items() if key[0] not in ignored} for n, of in dropped.items()}


def _moved(before: Mapping[int, _Counted], after: Mapping[int, _Counted]) -> tuple[Moved, Moved]:
    packets, lengths = {}, {}
    for number, counted in after.items():
        for (name, key), now in counted.rules.items():
            was = before[number].rules.get((name, key), (0, 0))
            if now != was:
                packets[number, name, key] = now[0] - was[0]
                lengths[number, name, key] = now[1] - was[1]
    return packets, lengths


def _promised(probe: Probe, fate: str | int, told: str, result: Result) -> Result:
    """Return the result that a fate means; how many segments TCP takes is the kernel's choice."""
    if fate != ANSWERED:
        return Result(error=told, segments=result.segments)
    return Result(1 if probe.protocol == "tcp" else probe.count, probe.count, "", result.segments)


def _underlay(node: Node) -> End:
    return str(node.netns(NODE)), node.spec.node4.ip, node.spec.node6.ip


def _end(end: End, version: int) -> tuple[str, str]:
    return end[0], str(end[1] if version == 4 else end[2])
