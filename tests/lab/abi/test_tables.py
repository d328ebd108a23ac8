"""The layouts of all recorded releases: every field is known, and lies where the release's programs read it."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from datapath.base.bpftypes import MapType
from datapath.kernel import bpf
from datapath.kernel.map import Map
from lab.abi import tables
from lab.abi.conntrack import CtEntry, CtTuple
from lab.abi.layouts import (
    EndpointInfo,
    EndpointKey,
    IpcacheKey,
    MetricsKey,
    MetricsValue,
    RemoteEndpointInfo,
    TunnelKey,
    TunnelValue,
)
from lab.abi.others import (
    AuthInfo,
    AuthKey,
    L2ResponderKey,
    L2ResponderStats,
    NodeKey,
    NodeValue,
    RateLimit,
    RateLimitKey,
    RateLimitMetrics,
    RateLimitMetricsKey,
)
from lab.abi.policymap import PolicyEntry, PolicyKey, PolicyStats, PolicyStatsKey
from lab.abi.record import KNOWN_RELEASES, Described, Fields, Record, UnknownLayout
from tests.lab.abi.kernelmaps import create
from tests.lab.abi.recorded import RECORDED, layouts_of, releases

V4, V6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
NODE = IPv4Address("198.51.100.7")
POD = EndpointInfo(0x01020304, 0x0506, 1, "0b:0c:0d:0e:0f:10", "11:12:13:14:15:16")
RULE = PolicyKey(0x01020304, True, 6, 80)

KINDS: dict[str, tuple[tables.Kind[Any, Any] | tables.OfOthers[Any, Any], list[tuple[Described, Described]]]] = {
    "cilium_lxc": (tables.ENDPOINTS, [(EndpointKey(V4), POD), (EndpointKey(V6), POD)]),
    "cilium_ipcache": (
        tables.IDENTITIES,
        [
            (IpcacheKey(V4, 32), RemoteEndpointInfo(0x01020304, NODE, key=5)),
            (IpcacheKey(V6, 64), RemoteEndpointInfo(7)),
        ],
    ),
    "cilium_tunnel_map": (tables.TUNNELS, [(TunnelKey(V4), TunnelValue(NODE, 3)), (TunnelKey(V6), TunnelValue(NODE))]),
    "cilium_policy": (
        tables.POLICY,
        [
            (RULE, RULE.entry(deny=True)),
            (PolicyKey(1, False, 6), PolicyKey(1, False, 6).entry(deny=False)),
            (PolicyKey(0, True), PolicyEntry()),
        ],
    ),
    "cilium_policystats": (tables.POLICY_STATS, [(PolicyStatsKey(101, RULE), PolicyStats(3, 300))]),
    "cilium_metrics": (tables.METRICS, [(MetricsKey(140, 2), MetricsValue(1, 2))]),
    "cilium_ct_tcp4": (tables.CONNECTIONS, [(CtTuple(V4, NODE, 1234, 80, 6, 1), CtEntry(lifetime=9, flags=17))]),
    "cilium_ct_tcp6": (tables.CONNECTIONS, [(CtTuple(V6, V6, 1234, 80, 6, 1), CtEntry(lifetime=9, src_sec_id=7))]),
}
"""What goes into each map that the lab reads or writes."""
KINDS |= {
    "cilium_node_map": (tables.NODES, [(NodeKey(V4), NodeValue(3)), (NodeKey(V6), NodeValue(0))]),
    "cilium_node_map_v2": (tables.NODES, [(NodeKey(V4), NodeValue(3, 7)), (NodeKey(V6), NodeValue(0))]),
    "cilium_auth": (tables.AUTHENTICATIONS, [(AuthKey(0x01020304, 7, 3, 1), AuthInfo(1 << 60))]),
    "cilium_l2_responder_v4": (tables.ANNOUNCEMENTS, [(L2ResponderKey(V4, 0x01020304), L2ResponderStats(9))]),
    "cilium_ratelimit": (tables.RATE_LIMITS, [(RateLimitKey(0x01020304), RateLimit(1 << 50, 11))]),
    "cilium_ratelimit_metrics": (tables.RATE_LIMIT_METRICS, [(RateLimitMetricsKey(2), RateLimitMetrics(12))]),
}
KINDS["cilium_auth_map"] = KINDS["cilium_auth"]
KINDS["cilium_ipcache_v2"], KINDS["cilium_policy_v2"] = KINDS["cilium_ipcache"], KINDS["cilium_policy"]
CASES = [
    pytest.param(release, name, id=f"{name} of {release}")
    for release in releases()
    for name in layouts_of(release)
    if name in KINDS
]


def packed(release: str, name: str, key: Described, value: Described) -> tuple[Fields, Fields]:
    """Return key and value by the fields that the release's C has, under the names that it gives them."""
    layout = layouts_of(release)[name]
    with create(name, layout) as opened:
        table = KINDS[name][0].of(opened)
        return Fields(layout[0], table.key.pack(key)), Fields(layout[1], table.value.pack(value))


def test_every_recorded_map_of_a_release_is_recorded() -> None:
    assert len(releases()) == 8
    assert {name for release in releases() for name in layouts_of(release)} == set(RECORDED)


@pytest.mark.privileged
@pytest.mark.parametrize(("release", "name"), CASES)
def test_what_is_packed_in_a_layout_of_the_kernel_is_read_from_it(release: str, name: str) -> None:
    kind, pairs = KINDS[name]
    with create(name, layouts_of(release)[name]) as opened:
        table = kind.of(opened)
        for key, value in pairs:
            if isinstance(value, CtEntry) and table.value.place("packets") is not None:
                value = replace(value, packets=0, length=0)
            data = table.key.pack(key), table.value.pack(value)
            assert [len(each) for each in data] == [opened.info.key_size, opened.info.value_size]
            whole = data[1] if opened.value_bytes == len(data[1]) else data[1].ljust(8, b"\0")
            opened.update(data[0], whole * (opened.value_bytes // len(whole)))
            assert (table.key.unpack(data[0]), table.value.unpack(data[1])) == (key, value)
            assert data[0] in set(opened.keys())


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("release", "name", "expected"),
    [
        ("1.14-4093531", "cilium_policy", {"wildcard_protocol": 0, "wildcard_dport": 1, "deny": 1}),
        ("1.16.5", "cilium_policy", {"lpm_prefix_length": 8, "deny": 1}),
        ("1.19.0-dev", "cilium_policy_v2", {"lpm_prefix_length": 8, "deny": 1, "cookie": 0, "proxy_port_priority": 0}),
        ("1.14-4093531", "cilium_lxc", {"ifindex": 5, "lxc_id": 101, "flags": 0}),
        ("1.15.12", "cilium_lxc", {"ifindex": 5, "lxc_id": 101, "sec_id": 4711}),
        ("1.17.0-rc.1", "cilium_lxc", {"sec_id": 4711, "parent_ifindex": 0}),
        ("1.16.5", "cilium_ipcache", {"sec_identity": 7, "tunnel_endpoint": 0x0A71A8C0, "flag_skip_tunnel": 0}),
        ("1.19.0-dev", "cilium_ipcache_v2", {"flag_has_tunnel_ep": 1, "flag_ipv6_tunnel_ep": 0, "sec_identity": 7}),
    ],
)
def test_fields_are_set_under_the_names_of_the_release(release: str, name: str, expected: dict[str, int]) -> None:
    rule = PolicyKey(7, False, 6)
    info = EndpointInfo(5, 101, 0, None, None, sec_id=4711)
    pairs: dict[str, tuple[Described, Described]] = {
        "cilium_policy": (rule, rule.entry(deny=True)),
        "cilium_lxc": (EndpointKey(V4), info),
        "cilium_ipcache": (IpcacheKey(V4, 32), RemoteEndpointInfo(7, IPv4Address("192.168.113.10"))),
    }
    _, value = packed(release, name, *pairs[name.removesuffix("_v2")])
    assert {field: value.number(field) for field in expected} == expected


@pytest.mark.privileged
def test_an_address_without_a_tunnel_has_no_tunnel_endpoint() -> None:
    _, value = packed("1.19.0-dev", "cilium_ipcache_v2", IpcacheKey(V4, 32), RemoteEndpointInfo(7))
    assert (value.number("flag_has_tunnel_ep"), value.number("tunnel_endpoint")) == (0, 0)


@pytest.mark.privileged
def test_a_missing_and_an_unknown_field_are_named() -> None:
    key, value = layouts_of("1.16.5")["cilium_lxc"]
    fields = {**value.fields, "colour": value.fields["ifindex"]}
    del fields["lxc_id"]
    with (
        create("cilium_lxc", (key, replace(value, fields=fields))) as opened,
        pytest.raises(UnknownLayout) as caught,
    ):
        tables.ENDPOINTS.of(opened)
    assert caught.value.differences == ("it has no field lxc_id", "its field colour is unknown")
    assert str(caught.value).startswith("map cilium_lxc: endpoint_info: it has no field lxc_id, ")
    assert str(caught.value).endswith(f"the layouts of Cilium {KNOWN_RELEASES}: load programs of one of these")


def test_a_development_snapshot_is_not_called_a_release() -> None:
    snapshots = [name.removesuffix(".0-dev") for name in releases() if name.endswith(".0-dev")]
    assert snapshots == ["1.18", "1.19"]
    for name in snapshots:
        assert re.search(rf"\b{re.escape(name)}-dev of \w+ 202\d", KNOWN_RELEASES)
        assert not re.search(rf"\b{re.escape(name)}\b(?!-dev)", KNOWN_RELEASES)


@pytest.mark.privileged
def test_a_field_that_lower_rooms_read_must_not_move() -> None:
    key, value = layouts_of("1.16.5")["cilium_ct_tcp4"]
    moved = replace(value, size=64, fields={**value.fields, "lifetime": (448, 32)})
    with create("cilium_ct4", (key, moved)) as opened, pytest.raises(UnknownLayout, match="lifetime is not at byte 32"):
        tables.CONNECTIONS.of(opened)


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("release", "lost"), [("1.16.5", "lpm_prefix_length"), ("1.15.12", "wildcard_dport")], ids=["prefix", "wildcard"]
)
def test_a_policy_without_the_protocol_and_port_that_it_is_for_is_refused(release: str, lost: str) -> None:
    key, value = layouts_of(release)["cilium_policy"]
    fields = {name: place for name, place in value.fields.items() if name != lost}
    said = "it has neither wildcard_dport and wildcard_protocol nor lpm_prefix_length"
    with (
        create("cilium_policy_00101", (key, replace(value, fields=fields))) as opened,
        pytest.raises(UnknownLayout, match=said),
    ):
        tables.POLICY.of(opened)


@pytest.mark.privileged
def test_what_is_no_struct_is_an_unknown_layout() -> None:
    number = Record("int", 4, {})
    with create("cilium_lxc", (number, number)) as opened, pytest.raises(UnknownLayout, match="no field ip6/ip"):
        tables.ENDPOINTS.of(opened)


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("name", "kind", "sizes"),
    [
        ("cilium_policy_v2_00101", tables.POLICY, (PolicyKey.SIZE, PolicyEntry.SIZE)),
        ("cilium_ipcache_v2", tables.IDENTITIES, (IpcacheKey.SIZE, 24)),
    ],
)
def test_without_types_the_layout_of_other_sources_is_not_guessed(
    name: str, kind: tables.Kind[Any, Any], sizes: tuple[int, int]
) -> None:
    with (
        Map.of(bpf.map_create(MapType.HASH, *sizes, 4, name=name), name) as opened,
        pytest.raises(UnknownLayout, match=f"map {name}: .*no types, and our own sources have no such map"),
    ):
        kind.of(opened)


def test_a_value_that_does_not_fit_its_field_is_refused() -> None:
    _, value = layouts_of("1.16.5")["cilium_lxc"]
    with pytest.raises(ValueError, match="lxc_id has 16 bits, 65536 does not fit"):
        value.pack({"lxc_id": 1 << 16})
