"""Policies, and the policy map entries computed from them. Pure. `lab.agent.policyfile` parses their JSON form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from datapath.endpoint import HEALTH_ID, HOST_ID, REMOTE_NODE_ID, WORLD_ID
from datapath.errors import ReloadlabError
from lab.abi.policymap import PolicyKey

Network = IPv4Network | IPv6Network
Labels = frozenset[str]

PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58, "SCTP": 132}
ANY = 0

LOCAL_IDENTITY = 1 << 24
"""The bit of identities that mean something on their own node only: those of CIDRs."""
_LOCAL_IDENTITIES = (1 << 16) - 1

WORLD, CLUSTER, ALL = "world", "cluster", "all"
ENTITIES = {
    "host": HOST_ID,
    "unmanaged": 3,
    "health": HEALTH_ID,
    "init": 5,
    "remote-node": REMOTE_NODE_ID,
    "kube-apiserver": 7,
    "ingress": 8,
}
RESERVED = "reserved:"
"""Source of the labels of host and health: only who names it selects them."""
ANY_SOURCE = "any"
"""The source that a selector names for a label of any source; so does one that names none."""


class PolicyError(ReloadlabError):
    """A policy that cannot be used; `where` is the place in the document."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


class Operator(StrEnum):
    """What is asked of a label (metav1.LabelSelectorOperator)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """What is asked of one label; the source is "" for any. A missing label has none of the values."""

    source: str
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def holds(self, labels: Iterable[tuple[str, str, str]]) -> bool:
        """Tell whether labels, each (source, key, value), are as this asks."""
        found = [value for source, key, value in labels if key == self.key and self.source in ("", source)]
        match self.operator:
            case Operator.EXISTS:
                return bool(found)
            case Operator.DOES_NOT_EXIST:
                return not found
            case Operator.IN:
                return not self.values.isdisjoint(found)
            case Operator.NOT_IN:
                return self.values.isdisjoint(found)

    def __str__(self) -> str:
        label = f"{self.source}:{self.key}" if self.source else self.key
        values = sorted(self.values)
        match self.operator:
            case Operator.EXISTS:
                return label
            case Operator.DOES_NOT_EXIST:
                return f"!{label}"
            case Operator.IN:
                return f"{label}={values[0]}" if len(values) == 1 else f"{label} in ({', '.join(values)})"
            case Operator.NOT_IN:
                return f"{label} not in ({', '.join(values)})"


@dataclass(frozen=True, slots=True)
class Selector:
    """Endpoints that are as all of these ask."""

    requirements: tuple[Requirement, ...] = ()

    def selects(self, labels: Labels) -> bool:
        """Tell whether it selects an endpoint; one with reserved labels only if it names one of them."""
        have = [split_label(label) for label in labels]
        named = any(r.operator in (Operator.IN, Operator.EXISTS) for r in self.requirements)
        if have and not named and all(source == RESERVED[:-1] for source, _, _ in have):
            return False
        return all(requirement.holds(have) for requirement in self.requirements)

    def __str__(self) -> str:
        return ", ".join(map(str, self.requirements)) or "{}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `peers` None matches every peer; empty `ports` match every port.

    `ports` are (protocol, port), the port 0 for any; of ICMP it is the type of the message.
    """

    egress: bool
    deny: bool
    peers: Peers | None
    ports: tuple[tuple[int, int], ...] = ()

    @property
    def place(self) -> str:
        """The key of the document under which its selectors are."""
        section = ("egress" if self.egress else "ingress") + ("Deny" if self.deny else "")
        return f"{section}: {'to' if self.egress else 'from'}Endpoints"


@dataclass(frozen=True, slots=True)
class Peers:
    """Who is on the other side of a rule: anybody who is in one of these."""

    selectors: tuple[Selector, ...] = ()
    cidrs: tuple[Network, ...] = ()
    entities: tuple[str, ...] = ()
    identities: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy; in `directions` (True: egress) what no rule allows is denied to the endpoints it is for."""

    name: str
    selector: Selector | None
    endpoint: str | None
    directions: frozenset[bool]
    rules: tuple[Rule, ...]

    def is_for(self, name: str, labels: Labels) -> bool:
        """Tell whether it is for an endpoint of this name and these labels."""
        return name == self.endpoint if self.selector is None else self.selector.selects(labels)


def cidrs(policies: Iterable[Policy]) -> dict[Network, int]:
    """Return the identity of every CIDR that policies name; PolicyError if there are more than there are identities.

    It follows from the CIDR, so that nobody has to allocate and remember it, on whatever node. All of a family has one
    too: the identity of the world is for both.
    """
    peers = [rule.peers for policy in policies for rule in policy.rules if rule.peers is not None]
    networks = {network for each in peers for network in each.cidrs}
    if len(networks) > _LOCAL_IDENTITIES:
        raise PolicyError("policies", f"{len(networks)} CIDRs, there are identities for {_LOCAL_IDENTITIES}")
    found: dict[int, Network] = {}
    for network in sorted(networks, key=lambda n: (n.version, n.network_address.packed, n.prefixlen)):
        number = int.from_bytes(hashlib.sha256(str(network).encode()).digest()[:8], "big") % _LOCAL_IDENTITIES
        while LOCAL_IDENTITY + 1 + number in found:
            number = (number + 1) % _LOCAL_IDENTITIES
        found[LOCAL_IDENTITY + 1 + number] = network
    return {network: identity for identity, network in found.items()}


def resolve(
    policies: Sequence[Policy], name: str, labels: Labels, known: Mapping[int, Sequence[Labels]]
) -> dict[PolicyKey, bool]:
    """Return the policy map of an endpoint: for every key whether it denies.

    `known` are the identities of the cluster and whose labels they stand for. A direction in which no policy is for
    the endpoint is open. The host always reaches its pods (option allow-localhost).
    """
    mine = [policy for policy in policies if policy.is_for(name, labels)]
    networks = cidrs(policies)
    allowed: set[PolicyKey] = set()
    denied: set[PolicyKey] = set()
    for egress in (False, True):
        if not any(egress in policy.directions for policy in mine):
            allowed.add(PolicyKey(ANY, egress))
    if any(False in policy.directions for policy in mine):
        allowed.add(PolicyKey(HOST_ID, egress=False))
    for policy in mine:
        for rule in policy.rules:
            (denied if rule.deny else allowed).update(_keys(rule, known, networks))
    return verdicts(allowed, denied)


def without_peers(policies: Iterable[Policy], known: Mapping[int, Sequence[Labels]]) -> list[str]:
    """Return a line for each selector of a rule that selects nobody of the cluster; `known` is as for `resolve`.

    It may be for pods that come later, or misspelt.
    """
    everywhere = [labels for holders in known.values() for labels in holders]
    lines = (
        f"{policy.name}: {rule.place} selects no pod: {selector}"
        for policy in policies
        for rule in policy.rules
        for selector in (() if rule.peers is None else rule.peers.selectors)
        if not any(selector.selects(labels) for labels in everywhere)
    )
    return list(dict.fromkeys(lines))


def verdicts(allowed: set[PolicyKey], denied: set[PolicyKey]) -> dict[PolicyKey, bool]:
    """Return keys such that the datapath's six lookups, in their order, end at a denying one if any rule denies.

    An allowing key may come before a denying one that is wider in another part: where both match, a key that denies
    is added that is as narrow as both.
    """
    found = {key: any(deny.covers(key) for deny in denied) for key in allowed}
    for deny in denied:
        found[deny] = True
        for allow in allowed:
            both = deny.meet(allow)
            if both is not None:
                found[both] = True
    return found


def changes(present: Mapping[PolicyKey, bool], wanted: Mapping[PolicyKey, bool]) -> list[tuple[PolicyKey, bool | None]]:
    """Return the writes that lead from one map to the other: (key, whether it denies), None to delete it.

    In this order no packet that is allowed before and after is denied in between, and none that is denied before and
    after is allowed (cilium#10936: an allowed packet must not fall between deleting and adding).
    """
    new = [(key, deny) for key, deny in wanted.items() if present.get(key) is not deny]
    old = [(key, deny) for key, deny in present.items() if key not in wanted]
    sets = sorted(new, key=lambda item: not item[1])
    return [*sets, *((key, None) for key, _ in sorted(old, key=lambda item: item[1]))]


def _keys(rule: Rule, known: Mapping[int, Sequence[Labels]], networks: Mapping[Network, int]) -> Iterator[PolicyKey]:
    identities = {ANY} if rule.peers is None else set(_identities(rule.peers, known, networks))
    for identity in sorted(identities):
        for protocol, port in rule.ports or ((ANY, ANY),):
            yield PolicyKey(identity, rule.egress, protocol, port)


def _identities(peers: Peers, known: Mapping[int, Sequence[Labels]], networks: Mapping[Network, int]) -> Iterator[int]:
    yield from peers.identities
    for identity, holders in known.items():
        if any(selector.selects(labels) for selector in peers.selectors for labels in holders):
            yield identity
    for wanted in peers.cidrs:
        yield from (
            identity
            for network, identity in networks.items()
            if network.version == wanted.version and network.subnet_of(wanted)  # type: ignore[arg-type]
        )
    for entity in peers.entities:
        if entity == ALL:
            yield ANY
        elif entity == WORLD:
            yield from (WORLD_ID, *networks.values())
        elif entity == CLUSTER:
            yield from (*ENTITIES.values(), *known)
        else:
            yield ENTITIES[entity]


def split_label(label: str) -> tuple[str, str, str]:
    """Return (source, key, value) of k8s:app=web; without a source it is ""."""
    key, _, value = label.partition("=")
    source, separator, rest = key.partition(":")
    return (source, rest, value) if separator else ("", key, value)
