"""Policies as they are written: what they mean, and what is refused."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from lab.agent.policy import PolicyError
from lab.agent.policyfile import load, parse
from tests.lab.agent.test_policy import ports, web


def chosen(key: str, operator: str, values: list[str] | None = None) -> dict[str, Any]:
    """A policy whose endpoints are selected by one expression."""
    expression = {"key": key, "operator": operator} | ({} if values is None else {"values": values})
    return {"name": "web", "endpointSelector": {"matchExpressions": [expression]}, "ingress": [{}]}


LABELS = {
    "web": frozenset({"k8s:app=web"}),
    "db": frozenset({"app=db", "tier=back"}),
    "bare": frozenset({"name=x"}),
    "health": frozenset({"reserved:health"}),
}


@pytest.mark.parametrize(
    ("key", "operator", "values", "wanted"),
    [
        ("app", "In", ["web", "db"], {"web", "db"}),
        ("k8s:app", "In", ["web", "db"], {"web"}),
        ("app", "NotIn", ["web"], {"db", "bare"}),
        ("app", "Exists", None, {"web", "db"}),
        ("tier", "DoesNotExist", None, {"web", "bare"}),
        ("reserved:health", "Exists", None, {"health"}),
        ("any:app", "In", ["web", "db"], {"web", "db"}),
        ("any:tier", "DoesNotExist", None, {"web", "bare"}),
        ("any:health", "Exists", None, {"health"}),
    ],
)
def test_expressions(key: str, operator: str, values: list[str] | None, wanted: set[str]) -> None:
    """A label that is not there has none of the values; reserved endpoints are selected only by name."""
    (policy,) = parse(chosen(key, operator, values))
    assert {name for name, labels in LABELS.items() if policy.is_for(name, labels)} == wanted


def test_labels_and_expressions_hold_together() -> None:
    document = chosen("tier", "Exists")
    document["endpointSelector"]["matchLabels"] = {"app": "web"}
    (policy,) = parse(document)
    assert not any(policy.is_for(name, labels) for name, labels in LABELS.items())


def _peers(**rule: Any) -> set[str]:
    (policy,) = parse(web(egress=[rule]))
    (found,) = policy.rules
    assert found.peers is not None
    return {str(network) for network in found.peers.cidrs}


def test_exceptions_of_a_cidr() -> None:
    """What is left are networks again, that cover the rest and nothing else."""
    assert _peers(toCIDRSet=[{"cidr": "10.0.0.0/30", "except": ["10.0.0.1/32"]}]) == {"10.0.0.0/32", "10.0.0.2/31"}
    assert _peers(toCIDRSet=[{"cidr": "fd00::/64"}], toCIDR=["fd01::/64"]) == {"fd00::/64", "fd01::/64"}
    assert _peers(toCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}]) == set()
    left = _peers(toCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12", "10.96.0.0/16", "10.1.2.0/24"]}])
    networks = [ip_network(text) for text in left]
    assert sum(network.num_addresses for network in networks) == (1 << 24) - (1 << 20) - (1 << 8)
    assert not any(network.overlaps(ip_network("10.96.0.0/12")) for network in networks)


def test_icmp_types_are_ports() -> None:
    fields = [{"type": 8}, {"type": 128, "family": "IPv6"}]
    (policy,) = parse(web(ingress=[{"icmps": [{"fields": fields}]}]))
    assert policy.rules[0].ports == ((1, 8), (58, 128))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        pytest.param({"kind": "CiliumNetworkPolicy", "spec": web()}, "policy 1: a whole manifest: give", id="manifest"),
        pytest.param(web(ingres=[]), "policy 1: unknown key 'ingres'", id="unknown section"),
        pytest.param(web(ingress=[{"toEndpoints": []}]), "web: ingress 1: unknown key 'toEndpoints'", id="wrong side"),
        pytest.param(web(ingress=[{"toPorts": ports({"portt": "1"})}]), "unknown key 'portt'", id="deep down"),
        pytest.param({"name": "x"}, "needs endpointSelector or endpoint", id="for nobody"),
        pytest.param(web(endpoint="pod-1"), "one of them", id="twice for somebody"),
        pytest.param([web(), web()], "web: the name is taken twice", id="names"),
        pytest.param(web(name="\x1b[31m"), "policy 1: its name has characters that cannot be printed", id="escape"),
        pytest.param(web(ingress=[{"fromIdentities": [0]}]), "identity 0 is out of range", id="identity 0"),
        pytest.param(web(ingress=[{"fromIdentities": [1 << 25]}]), "out of range: 1 to 33554431", id="identity"),
        pytest.param(web(ingress=[{"toPorts": ports({"port": "65536"})}]), "port '65536' is no number", id="port"),
        pytest.param(web(ingress=[{"toPorts": ports({"port": "1", "protocol": "ICMP"})}]), "no ports", id="ICMP port"),
        pytest.param(web(ingress=[{"toPorts": ports({"protocol": "IGMP"})}]), "'IGMP' is none of ANY", id="protocol"),
        pytest.param(web(ingress=[{"toPorts": []}]), "toPorts without a port", id="no port"),
        pytest.param(web(ingress=[{"fromCIDR": ["10.0.0.1/8"]}]), "has host bits set", id="CIDR"),
        pytest.param(web(ingress=[{"fromEntities": ["moon"]}]), "entity 'moon' is none of all", id="entity"),
        pytest.param(web(ingress=[{"icmps": [{"fields": [{"type": 0}]}]}]), "ICMP type 0 is no number", id="ICMP type"),
        pytest.param(web(ingress=[{"icmps": [{"fields": [{"family": "v4"}]}]}]), "'v4' is none of IPv4", id="family"),
        pytest.param(web(ingress=[{"icmps": [{"fields": [{"family": []}]}]}]), "[] is none of IPv4", id="family list"),
        pytest.param(web(ingress=[{"toPorts": [{"ports": [{"port": 80.9}]}]}]), "80.9 is no number", id="fraction"),
        pytest.param(web(ingress=[{"toPorts": [{"ports": [{"port": 1e999}]}]}]), "inf is no number", id="infinity"),
        pytest.param(web(ingress=[{"icmps": []}]), "icmps without a field", id="no ICMP"),
        pytest.param(web(ingress=[{"icmps": [], "toPorts": []}]), "make it two rules", id="ports and ICMP"),
        pytest.param(
            web(egress=[{"toCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}]}]),
            "11.0.0.0/16 is not part of 10.0.0.0/8",
            id="exception from elsewhere",
        ),
        pytest.param(web(egress=[{"toCIDRSet": [{"except": []}]}]), "a text is wanted, not None", id="no CIDR"),
        pytest.param(chosen("app", "Is", ["web"]), "'Is' is none of In, NotIn", id="operator"),
        pytest.param(chosen("app", "In"), "In takes values", id="no values"),
        pytest.param(chosen("app", "Exists", ["web"]), "Exists takes no values", id="values"),
        pytest.param(web(ingress={}), "a list is wanted", id="no list"),
        pytest.param("x", "an object is wanted, not 'x'", id="no object"),
        pytest.param(web(endpointSelector={"matchLabels": {"a": 1}}), "a text is wanted, not 1", id="no text"),
    ],
)
def test_wrong_documents(document: object, words: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse(document)
    assert words in str(error.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    path.write_text(json.dumps(web(ingress=[{}])))
    assert load(path) == web(ingress=[{}])
    path.write_text("{")
    with pytest.raises(PolicyError, match="cannot be read"):
        load(path)
    with pytest.raises(PolicyError, match="No such file"):
        load(tmp_path / "nope.json")


def test_no_rules_are_lost_as_their_key_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "web.json"
    path.write_text(
        '{"name": "web", "endpoint": "pod-1", "ingressDeny": [{"fromEntities": ["world"]}], "ingressDeny": []}'
    )
    with pytest.raises(PolicyError, match=r"^.*/web\.json: cannot be read: the key 'ingressDeny' is there twice$"):
        load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[" * 100_000, "not JSON"), (b"\xff\x00", "not UTF-8"), (b"", "empty")],
    ids=["deep", "binary", "empty"],
)
def test_files_that_are_no_json_are_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=rf"^{path}: cannot be read: {words}"):
        load(path)
