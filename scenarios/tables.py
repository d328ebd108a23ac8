"""Tables of packets: who sends what to whom under which policy, what becomes of it, and which rule decides."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reloadlab import HOST, IPV4, IPV6, UDP_OR_ECHO, PodSpec, Probe

PODS = tuple(
    PodSpec(name, labels=frozenset({f"app={name}"})) for name in ("busy", "client", "server", "stranger", "idle")
)
"""The first and the last have the traffic that runs all the time. On all nodes the same, and so their identities."""

POLICY, FRAGMENT, DENIED = 133, 157, 181
"""Why packets are dropped (bpf/lib/drop.h)."""
ANSWERED, TOO_BIG = "answered", "EMSGSIZE"

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

    def __str__(self) -> str:
        return f"{self.protocol}/{self.port} {self.size}"

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


SILENT = [
    {"name": "no egress", "endpointSelector": {"matchLabels": {"app": "server"}}, "egress": [{}]},
    {"name": "no ingress", "endpointSelector": {"matchLabels": {"app": "client"}}, "ingress": [{}]},
]
"""A policy: the server begins nothing, and nobody but the host begins anything with the client."""
