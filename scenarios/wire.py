"""Tables of packets: who sends what to whom under which policy, what becomes of it, and which rule has decided.

Every packet is real, and every counter is read before and after: the rules that decided have moved by exactly the
packets that were sent, on the side that they protect, and no other; what was dropped is counted on the right node, for
the right reason, once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from datapath.endpoint import HOST_ID, REMOTE_NODE_ID, WORLD_ID
from lab import metrics
from lab.exchange import DROPPED, IPV4, IPV6, UDP_OR_ECHO, Probe, Result, exchange
from lab.layouts import PolicyKey
from lab.metrics import EGRESS, INGRESS, Counters
from lab.node import Node
from lab.policy import PROTOCOLS, cidrs, parse
from lab.scenario import ClusterScenario, End, ends
from lab.sockets import Address
from lab.topology import HOST, NODE, OUTSIDE, PodSpec

PODS = tuple(
    PodSpec(name, labels=frozenset({f"app={name}"})) for name in ("busy", "client", "server", "stranger", "idle")
)
"""The first and the last have the traffic that runs all the time. On all nodes the same, and so their identities."""
QUIET = ("host", "client", "server", "stranger")

POLICY, FRAGMENT, DENIED = 133, 157, 181
"""Why packets are dropped (bpf/lib/drop.h)."""
ANSWERED, TOO_BIG = "answered", "EMSGSIZE"

ENOUGH = 20
"""Lines after which no more is asked: what is not answered takes its time."""

Size = Literal["small", "full", "over", "fragments"]
Rule = tuple[str, int | str, int]
"""What the deciding entry names: (who, protocol, port)."""
ANYTHING: Rule = ("any", 0, 0)


@dataclass(frozen=True, slots=True)
class What:
    """What is sent: of `size` small, as large as the path takes unfragmented, a byte more, or in three fragments."""

    protocol: Literal["icmp", "udp", "tcp"]
    port: int = 0
    size: Size = "small"

    def probe(self, version: int, mtu: int) -> Probe:
        """Return it for a path of this MTU, bytes."""
        room = mtu - (IPV4 if version == 4 else IPV6) - UDP_OR_ECHO
        size = {"small": 64, "full": room, "over": room + 1, "fragments": 2 * mtu + 1000}[self.size]
        return Probe(self.protocol, self.port, size, fragments=self.size == "fragments")


PING, JUMBO_PING = What("icmp"), What("icmp", 0, "full")


def tcp(port: int) -> What:
    return What("tcp", port)


def udp(port: int, size: Size = "small") -> What:
    return What("udp", port, size)


@dataclass(frozen=True, slots=True)
class Case:
    """One line of a table, for both IP versions.

    `source` and `target` are pods, the host by its address among the pods, the node by its own, or the outside. `near`:
    the two are on one node, or on two; None: both. `rule` is the entry that decides, None if there is none; `outcome`
    ANSWERED, TOO_BIG, or why it is dropped.
    """

    source: str
    what: What
    rule: Rule | None = None
    outcome: str | int = ANSWERED
    target: str = "server"
    near: bool | None = None

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} {self.what.protocol}/{self.what.port} {self.what.size}"


def allowed(source: str, rule: Rule, *what: What, target: str = "server", near: bool | None = None) -> list[Case]:
    """Return cases of packets that pass by a rule."""
    return [Case(source, each, rule, ANSWERED, target, near) for each in what]


def refused(
    source: str, *what: What, rule: Rule | None = None, target: str = "server", near: bool | None = None
) -> list[Case]:
    """Return cases of packets that are dropped: by a rule, or because there is none."""
    return [Case(source, each, rule, DENIED if rule else POLICY, target, near) for each in what]


@dataclass(frozen=True, slots=True)
class Chapter:
    """A policy for the server (or, for `egress`, the client; or what `subject` says), and what becomes of packets."""

    name: str
    rules: Mapping[str, Any]
    cases: tuple[Case, ...]
    subject: str
    egress: bool

    @property
    def document(self) -> list[dict[str, Any]]:
        if not self.rules:
            return []
        who = (
            {"endpoint": HOST} if self.subject == HOST else {"endpointSelector": {"matchLabels": {"app": self.subject}}}
        )
        return [{"name": self.name, **who, **self.rules}]


def chapter(name: str, rules: Mapping[str, Any], *cases: Sequence[Case], subject: str = "") -> Chapter:
    """Return a chapter; whose policy it is follows from its direction, unless it is told."""
    egress = any(key.startswith("egress") for key in rules)
    return Chapter(name, rules, tuple(itertools.chain(*cases)), subject or ("client" if egress else "server"), egress)


Moved = dict[tuple[int, str, PolicyKey], int]
"""Packets that policy entries have decided on, by (node, endpoint, key)."""


class Wire:
    """Asks every case of a chapter on a cluster, and keeps the account of all drops for the scenario's end."""

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
        self.lenient = lenient
        self._fragments, self._firewall = fragments, firewall
        self._nodes = dict(enumerate(cluster.cluster.nodes, 1))
        self._ends = {number: {**ends(node), NODE: _underlay(node)} for number, node in self._nodes.items()}
        self._ports = itertools.count(20000)
        self._drops: dict[int, Counter[tuple[int, int]]] = {number: Counter() for number in self._nodes}
        self._to = tuple(to) or tuple(self._nodes)
        self.asked = 0
        self.asked_twice = 0

    def run(self, chapters: Iterable[Chapter]) -> list[str]:
        """Apply each chapter's policy, ask its cases; return a line for each that went otherwise, or the first few."""
        wrong: list[str] = []
        for each in chapters:
            self._cluster.cluster.apply_policies(each.document)
            for case in each.cases:
                wrong += self.ask(each, case)
                if len(wrong) > ENOUGH:
                    return [*wrong, "and so on"]
        return wrong

    def close(self) -> None:
        """Let everything pass again, and hold the scenario to the drops that were expected."""
        self._cluster.cluster.apply_policies([])
        for number, drops in self._drops.items():
            self._cluster.expect_on(number, drops=dict(drops))

    def ask(self, each: Chapter, case: Case) -> Iterator[str]:
        """Send a case's packets between all places, IPv4 and IPv6; yield a line for all that was wrong."""
        for here, there in itertools.product(self._nodes, self._to):
            near = here == there
            if case.near not in (None, near) or (OUTSIDE in (case.source, case.target) and not near):
                continue
            for version in (4, 6):
                wrong = self._once(each, case, here, there, version)
                if wrong:
                    yield f"{each.name}: {here}/{case.source} -> {there}/{case.target} IPv{version} {case}: {wrong}"

    def _once(self, each: Chapter, case: Case, here: int, there: int, version: int) -> str:
        self.asked += 1
        mtu = self._mtu(case)
        probe = case.what.probe(version, mtu)
        frames, length = probe.frames(version, mtu)
        frames = 1 if probe.protocol == "tcp" else frames
        expected: dict[int, Counter[tuple[int, int]]] = {number: Counter() for number in self._nodes}
        fate, at = self._fate(each, case, here, there)
        if isinstance(fate, int):
            expected[at[0]][fate, at[1]] = frames
            self._drops[at[0]][fate, at[1]] += frames
        before = {n: (self._counters(n), metrics.rules(node, *QUIET)) for n, node in self._nodes.items()}

        def dropped() -> dict[int, dict[tuple[int, int], int]]:
            return {n: self._counters(n).drops_since(before[n][0]) for n in self._nodes}

        def settled() -> bool:
            return isinstance(fate, int) and sum(map(sum, (d.values() for d in dropped().values()))) >= frames

        result = exchange(
            Address(*_end(self._ends[here][case.source], version), next(self._ports)),
            Address(*_end(self._ends[there][case.target], version), probe.port),
            probe,
            settled=settled,
        )
        moved, lengths = self._moved(before)
        if probe.protocol == "tcp" and fate == ANSWERED:
            frames = result.segments
        wanted = self._wanted(each, case, here, there, version, fate, frames)
        twice = {k: number if k[2].egress else 2 * number for k, number in wanted.items()}
        if self.lenient and moved == twice != wanted:
            self.asked_twice += 1
            moved, length = wanted, 2 * length
        told = self._told(each, case, version, fate)
        wrong = [] if _as_told(result, fate, told) else [f"{result}, not {fate} {told}"]
        if (found := dropped()) != expected:
            wrong.append(f"dropped {found}, not {expected}")
        if moved != wanted:
            wrong.append(f"entries moved {moved}, not {wanted}")
        return "; ".join(wrong) or self._bytes(probe, fate, lengths, length)

    @staticmethod
    def _told(each: Chapter, case: Case, version: int, fate: str | int) -> str:
        """Return the error that the sender gets: of what its own interface drops, ICMPv6 alone tells."""
        if fate == TOO_BIG:
            return TOO_BIG
        by_host = isinstance(fate, int) and case.source in (HOST, NODE) and each.egress
        return DROPPED if by_host and (case.what.protocol, version) == ("icmp", 6) else ""

    def _counters(self, number: int) -> Counters:
        return Counters(metrics.packets(self._nodes[number]))

    def _mtu(self, case: Case) -> int:
        spec = self._nodes[1].spec
        return spec.route_mtu if case.source in ("client", "stranger", "server") else spec.mtu

    def _fate(self, each: Chapter, case: Case, here: int, there: int) -> tuple[str | int, tuple[int, int]]:
        """Return what becomes of the packets, and on which node, in which direction, a drop is counted."""
        if case.what.size == "fragments" and not self._fragments:
            return FRAGMENT, (there, INGRESS) if case.source == OUTSIDE else (here, EGRESS)
        if not each.egress:
            return case.outcome, (there, INGRESS)
        # What the host sends through cilium_host is counted as coming into the datapath.
        spec = self._nodes[here].spec
        inwards = each.subject == HOST and case.target != OUTSIDE
        inwards &= not spec.endpoint_routes if here == there else spec.tunnel
        return case.outcome, (here, INGRESS if inwards else EGRESS)

    def _wanted(
        self, each: Chapter, case: Case, here: int, there: int, version: int, fate: str | int, frames: int
    ) -> Moved:
        """Return how the entries must have moved: the sender's once a connection, the receiver's with each packet."""
        wanted: Moved = {}
        if fate in (FRAGMENT, TOO_BIG):
            return wanted
        sides = [(here, case.source, True), (there, case.target, False)]
        for number, end, egress in sides:
            name = HOST if end == NODE else end
            if name == OUTSIDE or (name == HOST and not self._firewall):
                continue
            mine = name == each.subject and egress == each.egress
            rule = case.rule if mine else ANYTHING
            if rule is not None:
                key = self._key(each, rule, number, here != there, egress, version)
                wanted[number, name, key] = 1 if egress and not (mine and isinstance(fate, int)) else frames
            if mine and isinstance(fate, int):
                break
        return wanted

    def _key(self, each: Chapter, rule: Rule, number: int, far: bool, egress: bool, version: int) -> PolicyKey:
        who, protocol, port = rule
        known = {"any": 0, "world": WORLD_ID, "host": HOST_ID, "remote-node": REMOTE_NODE_ID}
        if who == "cidr":
            outside = self._ends[number][OUTSIDE][1 if version == 4 else 2]
            identity = next(i for n, i in cidrs(parse(each.document)).items() if outside in n)
        else:
            identity = known[who] if who in known else self._nodes[number].pod(who).identity
        if protocol == "icmp":
            protocol = PROTOCOLS["ICMP" if version == 4 else "ICMPV6"]
        assert isinstance(protocol, int)
        return PolicyKey(identity, egress, protocol, port)

    def _moved(self, before: Mapping[int, tuple[Any, Mapping[Any, tuple[int, int]]]]) -> tuple[Moved, Moved]:
        packets, lengths = {}, {}
        for number, node in self._nodes.items():
            for (name, key), now in metrics.rules(node, *QUIET).items():
                was = before[number][1].get((name, key), (0, 0))
                if now != was:
                    packets[number, name, key] = now[0] - was[0]
                    lengths[number, name, key] = now[1] - was[1]
        return packets, lengths

    @staticmethod
    def _bytes(probe: Probe, fate: str | int, lengths: Moved, length: int) -> str:
        """Hold the receiver's entry to the bytes as well. What TCP adds to its segments is the kernel's affair."""
        received = [value for (_, _, key), value in lengths.items() if not key.egress]
        if probe.protocol == "tcp" or fate != ANSWERED or received in ([], [length]):
            return ""
        return f"bytes {received} instead of {length}"


def _underlay(node: Node) -> End:
    return str(node.netns(NODE)), node.spec.node4.ip, node.spec.node6.ip


def _end(end: End, version: int) -> tuple[str, str]:
    address: IPv4Address | IPv6Address = end[1] if version == 4 else end[2]
    return end[0], str(address)


def _as_told(result: Result, fate: str | int, error: str) -> bool:
    if fate == ANSWERED:
        return result.answered > 0 and result.arrived > 0 and not result.error
    return (result.answered, result.arrived, result.error) == (0, 0, error)
