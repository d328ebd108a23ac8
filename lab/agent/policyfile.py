"""Policies as users write them, in JSON, in the form of CiliumNetworkPolicy.

    [{"name": "web",
      "endpointSelector": {"matchLabels": {"app": "web"}},
      "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}],
                   "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]},
                  {"icmps": [{"fields": [{"type": 8, "family": "IPv4"}]}]}],
      "egressDeny": [{"toCIDRSet": [{"cidr": "172.20.0.0/16", "except": ["172.20.0.254/32"]}]}]}]

The keys are those of Cilium (pkg/policy/api), as far as they are known here; an unknown one is an error. Ours are
`endpoint`, which names one endpoint of a node instead of selecting by labels, and `fromIdentities`, `toIdentities`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from datapath.base.statefile import DamagedFile, read_json
from lab.agent.policy import (
    ALL,
    ANY,
    ANY_SOURCE,
    CLUSTER,
    ENTITIES,
    LOCAL_IDENTITY,
    PROTOCOLS,
    WORLD,
    Network,
    Operator,
    Peers,
    Policy,
    PolicyError,
    Requirement,
    Rule,
    Selector,
    split_label,
)

_WITH_PORTS = ("TCP", "UDP", "SCTP")
_ICMP = {"IPv4": PROTOCOLS["ICMP"], "IPv6": PROTOCOLS["ICMPV6"]}


def load(path: Path) -> object:
    """Return the document of a JSON file, which `parse` takes; PolicyError if it cannot be read or is wrong."""
    try:
        document = read_json(path, keys_once=True)
    except (DamagedFile, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.reason
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
    if isinstance(item, dict) and "spec" in item:
        raise PolicyError(place, "a whole manifest: give what is below 'spec', with a name beside it")
    fields = _object(item, place, keys)
    name = _text(fields.get("name", place), place)
    if not name.isprintable():
        raise PolicyError(place, f"its name has characters that cannot be printed: {name!r}")
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
    peers = [f"{side}{kind}" for kind in ("Endpoints", "CIDR", "CIDRSet", "Entities", "Identities")]
    fields = _object(item, place, {*peers, "toPorts", "icmps"})
    if not fields:
        # As with Cilium: it allows nothing, but from now on what is not allowed is denied.
        return []
    ports = _all_ports(fields, place)
    return [Rule(egress, deny, _peers(fields, side, place) if fields.keys() & set(peers) else None, ports)]


def _peers(fields: Mapping[str, Any], side: str, place: str) -> Peers:
    def each(kind: str) -> list[Any]:
        return _list(fields.get(f"{side}{kind}", []), place)

    return Peers(
        selectors=tuple(_selector(item, place) for item in each("Endpoints")),
        cidrs=(
            *(_cidr(item, place) for item in each("CIDR")),
            *(network for item in each("CIDRSet") for network in _cidr_set(item, place)),
        ),
        entities=tuple(_entity(item, place) for item in each("Entities")),
        identities=tuple(_numeric(item, place) for item in each("Identities")),
    )


def _all_ports(fields: Mapping[str, Any], place: str) -> tuple[tuple[int, int], ...]:
    """Return the ports of a rule, or the types of its ICMP messages; empty for any."""
    if {"toPorts", "icmps"} <= fields.keys():
        raise PolicyError(place, "toPorts and icmps do not go together: make it two rules")
    ports: list[tuple[int, int]] = []
    for group in _list(fields.get("toPorts", []), place):
        for port in _list(_object(group, f"{place}: toPorts", {"ports"}).get("ports", []), place):
            ports += _port(port, place)
    for group in _list(fields.get("icmps", []), place):
        for field in _list(_object(group, f"{place}: icmps", {"fields"}).get("fields", []), place):
            ports.append(_icmp(field, place))
    for section, word in (("toPorts", "port"), ("icmps", "field")):
        if section in fields and not ports:
            raise PolicyError(place, f"{section} without a {word}")
    return () if (ANY, ANY) in ports else tuple(ports)


def _port(item: object, place: str) -> list[tuple[int, int]]:
    fields = _object(item, f"{place}: port", {"port", "protocol"})
    given = str(fields.get("port", ANY))
    number = int(given) if given.isascii() and given.isdecimal() else -1
    if not 0 <= number < 1 << 16:
        raise PolicyError(place, f"port {fields.get('port')!r} is no number from 0 to 65535")
    protocol = str(fields.get("protocol", "ANY")).upper()
    if protocol == "ANY":
        return [(PROTOCOLS[name], number) for name in _WITH_PORTS] if number else [(ANY, ANY)]
    if protocol not in PROTOCOLS:
        raise PolicyError(place, f"protocol {protocol!r} is none of {', '.join(('ANY', *PROTOCOLS))}")
    if number and protocol not in _WITH_PORTS:
        raise PolicyError(place, f"{protocol} has no ports; its types are named by icmps")
    return [(PROTOCOLS[protocol], number)]


def _icmp(item: object, place: str) -> tuple[int, int]:
    fields = _object(item, f"{place}: icmps", {"family", "type"})
    family, number = fields.get("family", "IPv4"), fields.get("type")
    if family not in list(_ICMP):
        raise PolicyError(place, f"family {family!r} is none of {', '.join(_ICMP)}")
    # The port 0 of a key stands for any; who has asked gets his echo reply (type 0) in any case.
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 256:
        raise PolicyError(place, f"ICMP type {number!r} is no number from 1 to 255")
    return _ICMP[family], number


def _selector(item: object, place: str) -> Selector:
    fields = _object(item, place, {"matchLabels", "matchExpressions"})
    labels = _object(fields.get("matchLabels", {}), f"{place}: matchLabels", None)
    expressions = _list(fields.get("matchExpressions", []), place)
    return Selector(
        (
            *(_requirement(key, Operator.IN, [value], place) for key, value in labels.items()),
            *(_expression(expression, f"{place}: matchExpressions") for expression in expressions),
        )
    )


def _expression(item: object, place: str) -> Requirement:
    fields = _object(item, place, {"key", "operator", "values"})
    operator = fields.get("operator")
    if operator not in list(Operator):
        raise PolicyError(place, f"operator {operator!r} is none of {', '.join(Operator)}")
    values = _list(fields.get("values", []), place)
    if bool(values) != (operator in (Operator.IN, Operator.NOT_IN)):
        raise PolicyError(place, f"{operator} takes {'no ' if values else ''}values")
    return _requirement(_text(fields.get("key"), place), Operator(operator), values, place)


def _requirement(label: str, operator: Operator, values: list[Any], place: str) -> Requirement:
    source, key, _ = split_label(label)
    source = "" if source == ANY_SOURCE else source
    return Requirement(source, key, operator, frozenset(_text(value, place) for value in values))


def _cidr(item: object, place: str) -> Network:
    try:
        return ip_network(_text(item, place))
    except ValueError as error:
        raise PolicyError(place, str(error)) from error


def _cidr_set(item: object, place: str) -> list[Network]:
    """Return the networks that are left of a CIDR without its exceptions."""
    fields = _object(item, place, {"cidr", "except"})
    whole = _cidr(fields.get("cidr"), place)
    left = [whole]
    for excepted in (_cidr(text, place) for text in _list(fields.get("except", []), place)):
        if excepted.version != whole.version or not excepted.subnet_of(whole):  # type: ignore[arg-type]
            raise PolicyError(place, f"{excepted} is not part of {whole}")
        left = [part for network in left for part in _without(network, excepted)]
    return left


def _without(network: Network, excepted: Network) -> Iterator[Network]:
    if excepted.supernet_of(network):  # type: ignore[arg-type]
        return
    if network.supernet_of(excepted):  # type: ignore[arg-type]
        yield from network.address_exclude(excepted)  # type: ignore[arg-type]
    else:
        yield network


def _entity(item: object, place: str) -> str:
    known = (ALL, CLUSTER, WORLD, *ENTITIES)
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
