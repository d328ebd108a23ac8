"""Policies in the form of CiliumNetworkPolicy, and what they become in the policy maps. Pure.

    [{"name": "web",
      "endpointSelector": {"matchLabels": {"app": "web"}},
      "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}],
                   "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}],
      "egressDeny": [{"toCIDR": ["172.20.0.0/16"]}]}]

The keys are those of Cilium (pkg/policy/api), as far as they are known here; an unknown one is an error. Ours are
`endpoint`, which names one endpoint of a node instead of selecting by labels, and `fromIdentities`, `toIdentities`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from datapath.endpoint import HEALTH_ID, HOST_ID, REMOTE_NODE_ID, WORLD_ID
from datapath.errors import ReloadlabError
from lab.policymap import PolicyKey

Network = IPv4Network | IPv6Network
Labels = frozenset[str]

PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58, "SCTP": 132}
_WITH_PORTS = ("TCP", "UDP", "SCTP")
ANY = 0

LOCAL_IDENTITY = 1 << 24
"""The bit of identities that mean something on their own node only: those of CIDRs."""
_LOCAL_IDENTITIES = (1 << 16) - 1

WORLD, CLUSTER, ALL = "world", "cluster", "all"
_ENTITIES = {
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


class PolicyError(ReloadlabError):
    """A policy that cannot be used; `where` is the place in the document."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where


@dataclass(frozen=True, slots=True)
class Selector:
    """Endpoints with all of these labels, each (source, key, value); the source is "" for any."""

    labels: tuple[tuple[str, str, str], ...] = ()

    def selects(self, labels: Labels) -> bool:
        have = {_split(label) for label in labels}
        if all(source == RESERVED[:-1] for source, _, _ in have) and have and not self.labels:
            return False
        return all(
            any((source in ("", s)) and key == k and value == v for s, k, v in have)
            for source, key, value in self.labels
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. Whoever is not restricted (`peers` None, `ports` empty) is anybody, on any port.

    `ports` are (protocol, port), the port 0 for any.
    """

    egress: bool
    deny: bool
    peers: Peers | None
    ports: tuple[tuple[int, int], ...] = ()


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

    It follows from the CIDR, so that nobody has to allocate and remember it, on whatever node. The whole of a family
    is the world and has none.
    """
    peers = [rule.peers for policy in policies for rule in policy.rules if rule.peers is not None]
    networks = {network for each in peers for network in each.cidrs if network.prefixlen}
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
        if not wanted.prefixlen:
            yield WORLD_ID
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
            yield from (*_ENTITIES.values(), *known)
        else:
            yield _ENTITIES[entity]


def load(path: Path) -> object:
    """Return the document of a JSON file, which `parse` takes; PolicyError if it cannot be read or is wrong."""
    try:
        document: object = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PolicyError(str(path), f"cannot be read: {reason}") from error
    parse(document)
    return document


def parse(document: object) -> tuple[Policy, ...]:
    """Return the policies of a document, one or a list of them."""
    items = document if isinstance(document, list) else [document]
    policies = tuple(_policy(item, number) for number, item in enumerate(items, 1))
    names = [policy.name for policy in policies]
    for name in names:
        if names.count(name) > 1:
            raise PolicyError(name, "the name is taken twice")
    return policies


def _policy(item: object, number: int) -> Policy:
    place = f"policy {number}"
    keys = {"name", "description", "endpoint", "endpointSelector", *_SECTIONS}
    fields = _object(item, place, keys)
    name = _text(fields.get("name", place), place)
    if ("endpoint" in fields) == ("endpointSelector" in fields):
        raise PolicyError(name, "needs endpointSelector or endpoint, one of them")
    selector = (
        _selector(fields["endpointSelector"], f"{name}: endpointSelector") if "endpointSelector" in fields else None
    )
    rules: list[Rule] = []
    directions = set()
    for section, (egress, deny) in _SECTIONS.items():
        for index, rule in enumerate(_list(fields.get(section, []), f"{name}: {section}"), 1):
            directions.add(egress)
            rules += _rule(rule, f"{name}: {section} {index}", egress=egress, deny=deny)
    endpoint = _text(fields["endpoint"], name) if "endpoint" in fields else None
    return Policy(name, selector, endpoint, frozenset(directions), tuple(rules))


_SECTIONS = {
    "ingress": (False, False),
    "ingressDeny": (False, True),
    "egress": (True, False),
    "egressDeny": (True, True),
}


def _rule(item: object, place: str, *, egress: bool, deny: bool) -> list[Rule]:
    side = "to" if egress else "from"
    fields = _object(
        item, place, {f"{side}{kind}" for kind in ("Endpoints", "CIDR", "Entities", "Identities")} | {"toPorts"}
    )
    if not fields:
        # As with Cilium: it allows nothing, but from now on what is not allowed is denied.
        return []
    peers = None
    if set(fields) - {"toPorts"}:
        peers = Peers(
            selectors=tuple(_selector(s, place) for s in _list(fields.get(f"{side}Endpoints", []), place)),
            cidrs=tuple(_cidr(c, place) for c in _list(fields.get(f"{side}CIDR", []), place)),
            entities=tuple(_entity(e, place) for e in _list(fields.get(f"{side}Entities", []), place)),
            identities=tuple(_numeric(i, place) for i in _list(fields.get(f"{side}Identities", []), place)),
        )
    ports: list[tuple[int, int]] = []
    for group in _list(fields.get("toPorts", []), place):
        for port in _list(_object(group, f"{place}: toPorts", {"ports"}).get("ports", []), place):
            ports += _port(port, place)
    if "toPorts" in fields and not ports:
        raise PolicyError(place, "toPorts without a port")
    return [Rule(egress, deny, peers, () if (ANY, ANY) in ports else tuple(ports))]


def _port(item: object, place: str) -> list[tuple[int, int]]:
    fields = _object(item, f"{place}: port", {"port", "protocol"})
    try:
        number = int(fields.get("port", ANY))
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < 1 << 16:
        raise PolicyError(place, f"port {fields.get('port')!r} is no number from 0 to 65535")
    protocol = str(fields.get("protocol", "ANY")).upper()
    if protocol == "ANY":
        return [(PROTOCOLS[name], number) for name in _WITH_PORTS] if number else [(ANY, ANY)]
    if protocol not in PROTOCOLS:
        raise PolicyError(place, f"protocol {protocol!r} is none of {', '.join(('ANY', *PROTOCOLS))}")
    if number and protocol not in _WITH_PORTS:
        raise PolicyError(place, f"{protocol} has no ports")
    return [(PROTOCOLS[protocol], number)]


def _selector(item: object, place: str) -> Selector:
    fields = _object(item, place, {"matchLabels"})
    labels = _object(fields.get("matchLabels", {}), f"{place}: matchLabels", None)
    return Selector(tuple(_split(f"{key}={_text(value, place)}") for key, value in labels.items()))


def _split(label: str) -> tuple[str, str, str]:
    """Return (source, key, value) of k8s:app=web; without a source it is ""."""
    key, _, value = label.partition("=")
    source, separator, rest = key.partition(":")
    return (source, rest, value) if separator else ("", key, value)


def _cidr(item: object, place: str) -> Network:
    try:
        return ip_network(_text(item, place))
    except ValueError as error:
        raise PolicyError(place, str(error)) from error


def _entity(item: object, place: str) -> str:
    known = (ALL, CLUSTER, WORLD, *_ENTITIES)
    if item not in known:
        raise PolicyError(place, f"entity {item!r} is none of {', '.join(known)}")
    return str(item)


def _numeric(item: object, place: str) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 0 < item < 2 * LOCAL_IDENTITY:
        raise PolicyError(place, f"identity {item!r} is out of range: 1 to {2 * LOCAL_IDENTITY - 1}")
    return item


def _object(item: object, place: str, keys: set[str] | None) -> Mapping[str, Any]:
    if not isinstance(item, dict):
        raise PolicyError(place, f"an object is wanted, not {item!r}")
    for key in item:
        if keys is not None and key not in keys:
            raise PolicyError(place, f"unknown key {key!r}; known are {', '.join(sorted(keys))}")
    return item


def _list(item: object, place: str) -> list[Any]:
    if not isinstance(item, list):
        raise PolicyError(place, f"a list is wanted, not {item!r}")
    return item


def _text(item: object, place: str) -> str:
    if not isinstance(item, str):
        raise PolicyError(place, f"a text is wanted, not {item!r}")
    return item
