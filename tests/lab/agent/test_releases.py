"""The control plane and all readers on maps of each recorded release, with the types that the release gives them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from datapath.base import mapnames
from datapath.base.mapnames import CT_MAPS
from datapath.endpoint import HOST_ID, WORLD_ID
from datapath.kernel.map import Map, open_pin
from datapath.load.maps import ensure_pin_dir
from datapath.load.types import TypeStore
from lab.abi import tables
from lab.abi.conntrack import CtEntry, CtTuple
from lab.abi.layouts import EndpointKey, IpcacheKey, MetricsKey, MetricsValue, RemoteEndpointInfo
from lab.abi.others import (
    AuthInfo,
    AuthKey,
    L2ResponderKey,
    L2ResponderStats,
    RateLimit,
    RateLimitKey,
    RateLimitMetrics,
    RateLimitMetricsKey,
)
from lab.abi.policymap import PolicyKey, PolicyStats, PolicyStatsKey
from lab.abi.record import UnknownLayout
from lab.agent import collector, mapfill
from lab.agent.enforcement import PolicyUpdate
from lab.agent.policyfile import parse
from lab.node.node import Node
from lab.node.topology import NodeSpec
from lab.watch import mapview, metrics, snapshot
from tests.lab.abi.kernelmaps import create, object_of
from tests.lab.abi.recorded import layouts_of, releases
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

POD = 101
NAMES = {
    **{name: name for name in ("cilium_lxc", "cilium_ipcache", "cilium_ipcache_v2", "cilium_tunnel_map")},
    **{name: name for name in ("cilium_metrics", "cilium_policystats", "cilium_ratelimit", "cilium_l2_responder_v4")},
    **{name: name for name in ("cilium_node_map", "cilium_node_map_v2", "cilium_auth_map", "cilium_ratelimit_metrics")},
    "cilium_auth": "cilium_auth_map",
    "cilium_policy": "cilium_policy_00101",
    "cilium_policy_v2": "cilium_policy_v2_00101",
    **dict(zip(("cilium_ct_tcp4", "cilium_ct_any4", "cilium_ct_tcp6", "cilium_ct_any6"), CT_MAPS, strict=True)),
}
POLICY = {"name": "web", "endpoint": "pod-1", "ingress": [{"fromIdentities": [500]}], "egress": [{}]}
LATER, OVER = 0xFFFFFFFF, 1
BEFORE_1_16 = ("1.14-4093531", "1.14.18", "1.15.12")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A node without programs."""
    with Node(NodeSpec(unique_name(), pods=1)) as node:
        yield node


@pytest.fixture(params=releases())
def maps(request: pytest.FixtureRequest, node: Node) -> Iterator[dict[str, Map]]:
    """The maps of a release, pinned and filled by the control plane; they go afterwards."""
    pins = node.datapath_config().globals
    ensure_pin_dir(pins)
    with ExitStack() as stack:
        found = {}
        for recorded, layout in layouts_of(request.param).items():
            if recorded not in NAMES:
                continue
            made = stack.enter_context(create(NAMES[recorded], layout))
            made.pin(pins / made.name)
            stack.callback((pins / made.name).unlink)
            mapfill.fill(node, made)
            found[made.name] = made
        yield found


def policy_map(maps: dict[str, Map]) -> Map:
    return next(opened for name, opened in maps.items() if mapnames.is_policy_map(name))


def write(opened: Map, kind: tables.Kind[Any, Any] | tables.OfOthers[Any, Any], key: Any, *values: Any) -> None:
    """Write an entry; a per-CPU map has one value after the other, the last of them on all further CPUs."""
    table = kind.of(opened)
    each = [table.value.pack(value) for value in values]
    count = opened.value_bytes // len(each[0])
    opened.update(table.key.pack(key), b"".join((each * count)[:count]))


def test_endpoints_and_identities_are_what_the_node_has(maps: dict[str, Map], node: Node) -> None:
    pod = node.pod("pod-1")
    row = next(row for row in mapview.lxc(node) if row["address"] == str(pod.ipv6))
    assert (row["id"], row["endpoint"], row["ifindex"]) == (POD, "pod-1", pod.ifindex)
    assert (row["mac"], row["node_mac"]) == (pod.mac, pod.node_mac)
    table = tables.ENDPOINTS.of(maps["cilium_lxc"])
    found = dict(table.items(maps["cilium_lxc"]))[EndpointKey(pod.ipv4)]
    assert found.sec_id == (0 if table.value.place("sec_id") is None else pod.identity)
    known = {row["network"]: row["identity"] for row in mapview.ipcache(node)}
    assert known[f"{pod.ipv4}/32"] == known[f"{pod.ipv6}/128"] == pod.identity
    assert (known["0.0.0.0/0"], known[f"{node.spec.router6}/128"]) == (WORLD_ID, HOST_ID)


def test_a_removed_pod_is_forgotten(maps: dict[str, Map], node: Node) -> None:
    pod = node.pod("pod-1")
    mapfill.forget(node.datapath_config().globals, pod)
    assert str(pod.ipv4) not in {row["address"] for row in mapview.lxc(node)}
    assert f"{pod.ipv6}/128" not in {row["network"] for row in mapview.ipcache(node)}
    assert mapview.ipcache(node)


def test_policies_are_applied_and_undone(maps: dict[str, Map], node: Node) -> None:
    assert {row["identity"] for row in mapview.policy(node, "pod-1")} == {0}
    pins, policies = node.datapath_config().globals, parse([POLICY])
    with PolicyUpdate(node, pins, policies) as update:
        update.add()
        update.remove()
    ingress = [row for row in mapview.policy(node, "pod-1") if row["direction"] == "ingress"]
    assert {(row["identity"], row["verdict"]) for row in ingress} == {(HOST_ID, "allow"), (500, "allow")}
    before = dict(policy_map(maps).items())
    update = PolicyUpdate(node, pins, ())
    update.__enter__()
    update.add()
    update.remove()
    assert dict(policy_map(maps).items()) != before
    update.__exit__(RuntimeError, RuntimeError(), None)
    assert dict(policy_map(maps).items()) == before


def test_counters_of_policies_are_read_where_the_release_has_them(maps: dict[str, Map], node: Node) -> None:
    opened, key = policy_map(maps), PolicyKey(0, egress=False)
    if "cilium_policystats" in maps:
        table, stats = tables.POLICY_STATS.of(maps["cilium_policystats"]), maps["cilium_policystats"]
        write(stats, tables.POLICY_STATS, PolicyStatsKey(POD, key), PolicyStats(3, 300), PolicyStats(4, 400))
        for other in range(POD + 1, POD + 60):
            write(stats, tables.POLICY_STATS, PolicyStatsKey(other, key), PolicyStats(50, 5000))
        values = stats.lookup_percpu(table.key.pack(PolicyStatsKey(POD, key)))
        expected = sum(table.value.unpack(value).packets for value in values)
    else:
        entry = key.entry(deny=False)
        write(opened, tables.POLICY, key, type(entry)(packets=7, length=700))
        expected = 7
    row = next(row for row in mapview.policy(node, "pod-1") if row["direction"] == "ingress")
    assert row["packets"] == expected > 0
    assert metrics.rules(node, "pod-1")["pod-1", key] == (expected, 100 * expected)
    mapfill.fill(node, opened)
    assert metrics.rules(node, "pod-1")["pod-1", key] == (expected, 100 * expected)


def test_a_packet_counts_once_while_a_policy_map_is_migrated(
    maps: dict[str, Map], node: Node, request: pytest.FixtureRequest
) -> None:
    pins, opened, key = node.datapath_config().globals, policy_map(maps), PolicyKey(0, egress=False)
    layouts = layouts_of(request.node.callspec.params["maps"])
    with ExitStack() as stack:
        old = stack.enter_context(create(opened.name, layouts[opened.name.removesuffix("_00101")]))
        moved = pins / f"{opened.name}:pending"
        old.pin(moved)
        stack.callback(moved.unlink)
        entry = key.entry(deny=False)
        for number, each in enumerate((opened, old), 3):
            write(each, tables.POLICY, key, replace(entry, packets=number, length=100 * number))
        expected = 7
        if "cilium_policystats" in maps:
            stats = maps["cilium_policystats"]
            write(stats, tables.POLICY_STATS, PolicyStatsKey(POD, key), PolicyStats(5, 500))
            expected = 5 * len(stats.lookup_percpu(next(stats.keys())))
        assert metrics.rules(node, "pod-1")["pod-1", key] == (expected, 100 * expected)


def test_connections_are_read_and_collected(maps: dict[str, Map], node: Node) -> None:
    pod = node.pod("pod-1")
    for port, until in ((1, OVER), (2, LATER)):
        write(maps[CT_MAPS[0]], tables.CONNECTIONS, CtTuple(pod.ipv4, node.spec.router4, port, 80, 6), entry(until))
        write(maps[CT_MAPS[2]], tables.CONNECTIONS, CtTuple(pod.ipv6, node.spec.router6, port, 80, 6), entry(until))
    rows = mapview.conntrack(node)
    assert {row["source"] for row in rows} == {f"{pod.ipv4}:1", f"{pod.ipv4}:2", f"[{pod.ipv6}]:1", f"[{pod.ipv6}]:2"}
    assert {(row["identity"], *row["state"]) for row in rows} == {(7, "seen_non_syn", "tx_closing")}
    assert {row.get("rx_packets", row.get("packets")) for row in rows} == {11}
    for address, number, sources in (
        (pod.ipv4, None, [f"{pod.ipv4}:1", f"{pod.ipv4}:2"]),
        (pod.ipv6, 2, [f"[{pod.ipv6}]:2"]),
        (node.spec.router4, 80, [f"{pod.ipv4}:1", f"{pod.ipv4}:2"]),
        (pod.ipv4, 80, []),
        (None, 2, [f"{pod.ipv4}:2", f"[{pod.ipv6}]:2"]),
    ):
        rows = mapview.conntrack(node, address=address, port=number)
        assert [row["source"] for row in rows] == sources
    deleted = {found.map: found.deleted for found in collector.collect(node.datapath_config().globals)}
    assert (deleted[CT_MAPS[0]], deleted[CT_MAPS[2]]) == (1, 1)
    collector.forget(node.datapath_config(), {pod.ipv6})
    assert [row["source"] for row in mapview.conntrack(node)] == [f"{pod.ipv4}:2"]


def entry(lifetime: int) -> CtEntry:
    return CtEntry(rx_packets=11, packets=11, lifetime=lifetime, src_sec_id=7, flags=2 | 16)


def test_metrics_have_the_places_that_the_release_counts_by(
    maps: dict[str, Map], node: Node, request: pytest.FixtureRequest
) -> None:
    """`maps` prints each; all others take the sum."""
    opened = maps["cilium_metrics"]
    has_places = request.node.callspec.params["maps"] not in BEFORE_1_16
    places = ((5, 2), (300, 109)) if has_places else ((0, 0),)
    for line, file in places:
        write(opened, tables.METRICS, MetricsKey(133, 1, line, file), MetricsValue(2, 200))
    (count,) = {sum(MetricsValue.unpack(v).count for v in values) for _, values in opened.items_percpu()}
    rows = mapview.metrics(node)
    assert {(row["reason"], row["direction"], row["packets"]) for row in rows} == {(133, "ingress", count)}
    known = {("bpf_lxc.c", 5), ("conntrack.h", 300)} if has_places else {(None, None)}
    assert {(row.get("file"), row.get("line")) for row in rows} == known
    assert metrics.packets(node) == {(133, 1): count * len(places)}


def test_metrics_that_a_later_release_counts_in_a_map_of_an_earlier_one_are_one_sum(
    maps: dict[str, Map], node: Node
) -> None:
    """Since 1.16 a key has line and file, where the releases before have reserved bytes."""
    opened = maps["cilium_metrics"]
    for place in (0, 1, 300):
        opened.update(struct.pack("=BBH4x", 133, 1, place), struct.pack("=QQ", 2, 200) * (opened.value_bytes // 16))
    (count,) = {sum(MetricsValue.unpack(v).count for v in values) for _, values in opened.items_percpu()}
    assert metrics.packets(node) == {(133, 1): 3 * count}
    assert sum(row["packets"] for row in mapview.metrics(node)) == 3 * count


def test_nodes_have_their_ids_in_all_maps_of_them(maps: dict[str, Map], node: Node) -> None:
    addresses = {str(address): 0 for address in node.spec.underlay_addresses}
    found = [opened for name, opened in maps.items() if name in (mapnames.NODES, mapnames.NODES_V2)]
    for opened in found:
        ids = {str(key.address): value.id for key, value in tables.NODES.of(opened).items(opened)}
        assert ids == addresses
    assert found
    assert {row["address"]: row["id"] for row in mapview.MAPS["node"](node)} == addresses
    assert all(("spi" in row) == (mapnames.NODES_V2 in maps) for row in mapview.MAPS["node"](node))


def test_what_only_the_programs_and_others_write_is_read(
    maps: dict[str, Map], node: Node, request: pytest.FixtureRequest
) -> None:
    write(maps[mapnames.AUTH], tables.AUTHENTICATIONS, AuthKey(7, 8, 0, 1), AuthInfo(99))
    said = {"local": 7, "remote": 8, "node": 0, "type": 1, "expiration": 99}
    assert mapview.MAPS["auth"](node) == [said]
    if mapnames.L2_RESPONDER in maps:
        key = L2ResponderKey(node.spec.router4, 5)
        write(maps[mapnames.L2_RESPONDER], tables.ANNOUNCEMENTS, key, L2ResponderStats(3))
        assert mapview.MAPS["l2"](node) == [{"address": str(node.spec.router4), "ifindex": 5, "responses": 3}]
    if mapnames.RATELIMIT in maps:
        usage = 1 if mapnames.RATELIMIT_METRICS in maps else 0
        write(maps[mapnames.RATELIMIT], tables.RATE_LIMITS, RateLimitKey(5, usage), RateLimit(1000, 2))
        limit = {"usage": "icmpv6", "ifindex": 5, "tokens": 2, "last_topup": 1000}
        if usage:
            write(
                maps[mapnames.RATELIMIT_METRICS], tables.RATE_LIMIT_METRICS, RateLimitMetricsKey(1), RateLimitMetrics(4)
            )
        assert mapview.MAPS["ratelimit"](node) == [limit | ({"dropped": 4} if usage else {})]


def test_a_snapshot_knows_what_packets_change(maps: dict[str, Map], node: Node) -> None:
    opened, rule = policy_map(maps), PolicyKey(0, egress=False)
    tuple_ = CtTuple(node.spec.router4, node.spec.router4, 1, 2, 6)
    write(maps[CT_MAPS[0]], tables.CONNECTIONS, tuple_, entry(LATER))
    before = snapshot.take(node)
    allow = rule.entry(deny=False)
    write(opened, tables.POLICY, rule, type(allow)(packets=9, length=900))
    write(maps[CT_MAPS[0]], tables.CONNECTIONS, tuple_, entry(LATER - 1))
    after = snapshot.take(node)
    assert {name: pin.content for name, pin in before.pins.items()} == {n: p.content for n, p in after.pins.items()}
    assert set(after.pins[CT_MAPS[0]].lifetimes.values()) == {LATER - 1}
    if "cilium_policystats" not in maps:
        assert (9, 900) in after.pins[opened.name].counters.values()
    write(opened, tables.POLICY, rule, rule.entry(deny=True))
    assert snapshot.take(node).pins[opened.name].content != before.pins[opened.name].content


def test_an_update_leaves_maps_of_another_release_in_their_layout(node: Node) -> None:
    """The control plane has the sources of tomorrow, the programs are still those of today."""
    pins, spec = node.datapath_config().globals, object_of("1.16.5", "cilium_lxc")
    ensure_pin_dir(pins)
    with create("cilium_lxc", layouts_of("1.14-4093531")["cilium_lxc"]) as opened, TypeStore(all_maps=True) as types:
        opened.pin(pins / opened.name)
        try:
            mapfill.fill_all(node, pins, spec, types=types)
        finally:
            (pins / opened.name).unlink()
        found = {key.address for key, _ in tables.ENDPOINTS.of(opened).items(opened)}
    assert {node.pod("pod-1").ipv4, node.spec.router6} <= found


def test_a_map_of_two_names_is_maintained_under_both(node: Node) -> None:
    """Some programs are of a release that calls it otherwise; the control plane's own sources have the other name."""
    pins, spec = node.datapath_config().globals, object_of("1.17.0-rc.1", mapnames.IPCACHE)
    name, pod = mapnames.IPCACHE_V2, IpcacheKey(node.pod("pod-1").ipv4, 32)
    ensure_pin_dir(pins)
    with (
        create(name, layouts_of("1.19.0-dev")[name]) as opened,
        TypeStore(all_maps=True) as types,
        ExitStack() as stack,
    ):
        opened.pin(pins / name)
        stack.callback((pins / mapnames.IPCACHE).unlink)
        stack.callback((pins / name).unlink)
        table = tables.IDENTITIES.of(opened)
        stale = table.key.pack(IpcacheKey(IPv4Address("192.0.2.77"), 32))
        opened.update(stale, table.value.pack(RemoteEndpointInfo(7)))
        mapfill.fill_all(node, pins, spec, types=types)
        assert pod in dict(table.items(opened))
        assert stale not in set(opened.keys())
        with open_pin(pins / mapnames.IPCACHE) as known:
            assert pod in dict(tables.IDENTITIES.of(known).items(known))


def test_a_layout_of_tomorrow_is_refused_before_anything_is_written(node: Node) -> None:
    key, value = layouts_of("1.19.0-dev")["cilium_lxc"]
    grown = type(value)(value.struct, value.size, {**value.fields, "vni": (320, 32)})
    with create("cilium_lxc", (key, grown)) as opened, pytest.raises(UnknownLayout, match="its field vni is unknown"):
        mapfill.fill(node, opened)
