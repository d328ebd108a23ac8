"""Policies as values: what they become, and the order in which a map goes from one to another."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.abi.policymap import PolicyEntry, PolicyKey
from lab.agent import policy
from lab.agent.policy import changes, resolve
from lab.agent.policyfile import parse

WEB, CLIENT, DB = frozenset({"k8s:app=web"}), frozenset({"k8s:app=client"}), frozenset({"app=db", "tier=back"})
KNOWN = {2001: [WEB], 2002: [CLIENT], 2003: [DB], 4: [frozenset({"reserved:health"})]}
OPEN = {PolicyKey(0, False): False, PolicyKey(0, True): False}
HOST = PolicyKey(1, False)


def web(**sections: Any) -> dict[str, Any]:
    return {"name": "web", "endpointSelector": {"matchLabels": {"app": "web"}}, **sections}


def entries(*documents: dict[str, Any], labels: frozenset[str] = WEB) -> dict[PolicyKey, bool]:
    return resolve(parse(list(documents)), "pod-1", labels, KNOWN)


def ports(*items: dict[str, str]) -> list[dict[str, list[dict[str, str]]]]:
    return [{"ports": list(items)}]


def test_without_a_policy_everything_passes() -> None:
    assert entries() == OPEN
    assert entries(web(ingress=[{}]), labels=DB) == OPEN


def test_directions_are_enforced_one_by_one() -> None:
    """As with Cilium: a rule that allows nothing, or only denies, closes its direction; the host always gets in."""
    assert entries(web(ingress=[{}])) == {HOST: False, PolicyKey(0, True): False}
    assert entries(web(egress=[{}])) == {PolicyKey(0, False): False}
    assert entries(web(egressDeny=[{"toIdentities": [7]}])) == {PolicyKey(0, False): False, PolicyKey(7, True): True}
    assert entries(web(ingress=[])) == OPEN


SIDE = {"fromEndpoints": [{"matchLabels": {"app": "client"}}]}


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        pytest.param(SIDE, {PolicyKey(2002, False)}, id="L3"),
        pytest.param(
            {**SIDE, "toPorts": ports({"port": "80", "protocol": "TCP"})}, {PolicyKey(2002, False, 6, 80)}, id="L3/L4"
        ),
        pytest.param({"toPorts": ports({"port": "53", "protocol": "udp"})}, {PolicyKey(0, False, 17, 53)}, id="L4"),
        pytest.param({**SIDE, "toPorts": ports({"protocol": "TCP"})}, {PolicyKey(2002, False, 6)}, id="protocol"),
        pytest.param({"toPorts": ports({"protocol": "ICMP"})}, {PolicyKey(0, False, 1)}, id="ICMP"),
        pytest.param({"toPorts": ports({"port": "0"})}, {PolicyKey(0, False)}, id="any port"),
        pytest.param(
            {"toPorts": ports({"port": "80"})}, {PolicyKey(0, False, p, 80) for p in (6, 17, 132)}, id="any protocol"
        ),
        pytest.param(
            {"fromEndpoints": [{}]}, {PolicyKey(i, False) for i in (2001, 2002, 2003)}, id="all pods, not health"
        ),
        pytest.param({"fromEndpoints": [{"matchLabels": {"app": "db", "tier": "front"}}]}, set(), id="nobody"),
        pytest.param({"fromEndpoints": [{"matchLabels": {"k8s:app": "db"}}]}, set(), id="another source"),
        pytest.param({"fromEntities": ["health", "remote-node"]}, {PolicyKey(i, False) for i in (4, 6)}, id="entities"),
        pytest.param({"fromEntities": ["all"]}, {PolicyKey(0, False)}, id="all"),
        pytest.param({"fromIdentities": [4711]}, {PolicyKey(4711, False)}, id="identity"),
        pytest.param({"fromEntities": ["world"]}, {PolicyKey(2, False)}, id="world"),
        pytest.param({"fromEndpoints": [{"matchLabels": {"any:app": "client"}}]}, {PolicyKey(2002, False)}, id="any"),
        pytest.param(
            {"fromEndpoints": [{"matchExpressions": [{"key": "any:app", "operator": "Exists"}]}]},
            {PolicyKey(i, False) for i in (2001, 2002, 2003)},
            id="any, by an expression",
        ),
    ],
)
def test_rules(rule: dict[str, Any], keys: set[PolicyKey]) -> None:
    assert entries(web(ingress=[rule])) == dict.fromkeys({*keys, HOST}, False) | {PolicyKey(0, True): False}


def test_cidrs_have_identities_of_their_own() -> None:
    """A CIDR within another one is a different identity, and the outer rule is for it as well; so is the world's."""
    both = web(egress=[{"toCIDR": ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]}])
    outer, inner = (policy.cidrs(parse(both))[ip_network(text)] for text in ("10.0.0.0/8", "10.1.0.0/16"))
    assert len(policy.cidrs(parse(both))) == 3
    assert outer != inner
    assert outer >> 16 == inner >> 16 == 1 << 8
    found = entries(
        web(egress=[{"toCIDR": ["10.0.0.0/8"]}]), {**web(egress=[{"toCIDR": ["10.1.0.0/16"]}]), "name": "b"}
    )
    assert {key.identity for key in found if key.egress} == {outer, inner}
    world = entries(
        web(egress=[{"toEntities": ["world"]}]), {**web(ingress=[{"fromCIDR": ["10.0.0.0/8"]}]), "name": "b"}
    )
    assert {key.identity for key in world if key.egress} == {2, outer}


def test_all_of_a_family_is_not_the_other_one() -> None:
    """The identity of the world is for both: 0.0.0.0/0 has one of its own, and so has ::/0."""
    document = parse(web(egress=[{"toCIDR": ["0.0.0.0/0", "10.0.0.0/8", "::/0"]}]))
    identities = {str(network): identity for network, identity in policy.cidrs(document).items()}
    four, inner, six = (identities[text] for text in ("0.0.0.0/0", "10.0.0.0/8", "::/0"))
    assert len({four, inner, six, 2}) == 4

    def allowed(*cidrs: str) -> set[int]:
        others = {"name": "others", "endpoint": "x", "egress": [{"toCIDR": ["10.0.0.0/8", "::/0", "0.0.0.0/0"]}]}
        found = entries(web(egress=[{"toCIDR": list(cidrs)}]), others)
        return {key.identity for key in found if key.egress}

    assert allowed("0.0.0.0/0") == {four, inner}
    assert allowed("::/0") == {six}
    assert allowed("10.0.0.0/8") == {inner}
    world = entries(web(egress=[{"toEntities": ["world"]}]), {**web(ingress=[{"fromCIDR": ["::/0"]}]), "name": "b"})
    assert {key.identity for key in world if key.egress} == {2, six}


def test_peers_that_select_nobody_are_named() -> None:
    """In the words of kubectl, once each; also of denying rules."""
    nobody = {"matchLabels": {"k8s:app": "db"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}
    several = {"matchExpressions": [{"key": "any:app", "operator": "In", "values": ["x", "w"]}]}
    rest = {"matchExpressions": [{"key": "app", "operator": "Exists"}]}
    both = {"fromEndpoints": [nobody, {"matchLabels": {"app": "client"}}, rest]}
    policies = parse(
        [
            web(ingress=[both, {"fromEndpoints": [nobody]}]),
            {**web(egressDeny=[{"toEndpoints": [several]}]), "name": "b"},
        ]
    )
    assert policy.without_peers(policies, KNOWN) == [
        "web: ingress: fromEndpoints selects no pod: k8s:app=db, !tier",
        "b: egressDeny: toEndpoints selects no pod: app in (w, x)",
    ]
    assert policy.without_peers(policies[:0], KNOWN) == []


def test_many_cidrs_do_not_meet() -> None:
    """5000 of 65535 identities: some would be the same by their hash alone."""
    many = web(egress=[{"toCIDR": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(5000)]}])
    assert len(set(policy.cidrs(parse(many)).values())) == 5000


def test_keys_as_the_kernel_has_them() -> None:
    for key in (PolicyKey(5, True, 6, 80), PolicyKey(5, False, 17), PolicyKey(0, True)):
        assert PolicyKey.unpack(key.pack()) == key
    assert [PolicyKey(1, False, *rest).pack()[0] for rest in ((6, 80), (6,), ())] == [64, 48, 40]
    assert PolicyKey(1, False, 6).entry(deny=True) == PolicyEntry(deny=True, wildcards=False, any_port=True)
    assert PolicyEntry.unpack(PolicyKey(1, False, 6).entry(deny=False).pack()).any_port


# Few values, so that rules meet each other often.
IDENTITIES, PROTOCOL_NUMBERS, PORTS = (0, 11, 12), (6, 17), (0, 80, 81)
keys = st.builds(
    PolicyKey,
    st.sampled_from(IDENTITIES),
    st.just(False),
    st.sampled_from((0, *PROTOCOL_NUMBERS)),
    st.sampled_from(PORTS),
).filter(lambda key: bool(key.protocol) or not key.port)
PACKETS = [PolicyKey(i, False, p, d) for i in (11, 12, 13) for p in (6, 17) for d in (80, 81, 82)]

Table = dict[PolicyKey, bool]


def allows(table: Table, packet: PolicyKey) -> bool:
    """The datapath's six lookups, in their order."""
    who, proto, port = packet.identity, packet.protocol, packet.port
    levels = [(who, proto, port), (0, proto, port), (who, proto, 0), (0, proto, 0), (who, 0, 0), (0, 0, 0)]
    found = next((k for i, p, d in levels if (k := PolicyKey(i, False, p, d)) in table), None)
    return found is not None and not table[found]


@given(st.sets(keys, max_size=6), st.sets(keys, max_size=6))
def test_deny_wins(allowed: set[PolicyKey], denied: set[PolicyKey]) -> None:
    """Whatever the precedence of the lookups: a packet passes if a rule allows it and none denies it."""
    table = policy.verdicts(allowed, denied)
    for packet in PACKETS:
        wanted = any(key.covers(packet) for key in allowed) and not any(key.covers(packet) for key in denied)
        assert allows(table, packet) is wanted, (packet, table)


tables = st.builds(policy.verdicts, st.sets(keys, max_size=5), st.sets(keys, max_size=5))


@given(tables, tables)
def test_no_packet_notices_a_change_that_is_not_about_it(old: Table, new: Table) -> None:
    """In every state on the way, what is decided alike before and after is decided that way."""
    same = [packet for packet in PACKETS if allows(old, packet) == allows(new, packet)]
    table = dict(old)
    for key, deny in changes(old, new):
        if deny is None:
            del table[key]
        else:
            table[key] = deny
        for packet in same:
            assert allows(table, packet) == allows(old, packet), (packet, key)
    assert table == new
