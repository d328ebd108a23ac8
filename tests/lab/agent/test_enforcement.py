"""Policies on real maps: what is written, what is refused, and that nothing half applied is left."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest

from datapath.endpoint import WORLD_ID
from datapath.errors import BpfError
from datapath.kernel.map import Map, open_pin
from lab.abi import layouts
from lab.abi.policymap import PolicyEntry, PolicyKey
from lab.agent import contents, enforcement
from lab.agent.agent import Agent
from lab.agent.cluster import Cluster, cluster_specs
from lab.agent.enforcement import PolicyMapFull, PolicyUpdate
from lab.agent.policy import PolicyError, cidrs
from lab.agent.policyfile import parse
from lab.node.node import Node, UnknownTarget
from lab.node.topology import NodeSpec, PodSpec
from lab.watch import mapview
from tests.lab.labs import unique_name

pytestmark = pytest.mark.privileged

PODS = (PodSpec("web", labels=frozenset({"app=web"})), PodSpec("pod-2"))
SMALL = 8


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """A loaded node whose policy maps hold few entries."""
    with (
        Node(NodeSpec(unique_name(), pods=PODS)) as node,
        Agent(node, defines=(("POLICY_MAP_SIZE", str(SMALL)),)) as agent,
    ):
        agent.start()
        yield agent


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "agent" in request.fixturenames:
        request.getfixturevalue("agent").apply_policies([])


def allow(*identities: int, **fields: Any) -> dict[str, Any]:
    selector = {"endpointSelector": {"matchLabels": {"app": "web"}}}
    return {"name": "a", **selector, "ingress": [{"fromIdentities": list(identities)}], **fields}


def ingress(agent: Agent, pod: str = "web") -> set[int]:
    return {row["identity"] for row in mapview.policy(agent.node, pod) if row["direction"] == "ingress"}


def policy_pin(agent: Agent, pod: str = "web") -> Map:
    return open_pin(agent.config.globals / f"cilium_policy_{agent.node.pod(pod).endpoint_id:05d}")


def test_the_host_is_asked_for_its_firewall_while_it_is_reloaded(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload moves its calls map aside, and removes the pin: one of those that were listed may be gone."""
    glob = Path.glob

    def listed(directory: Path, pattern: str) -> list[Path]:
        found = list(glob(directory, pattern))
        return [Path(f"{found[0]}:pending"), *found]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "glob", listed)
        assert not enforcement.host_has_firewall(agent.node)


def test_only_the_endpoints_that_are_selected(agent: Agent) -> None:
    agent.apply_policies(allow(500, 501))
    assert ingress(agent) == {1, 500, 501}
    assert ingress(agent, "pod-2") == ingress(agent, "health") == ingress(agent, "host") == {0}
    agent.apply_policies({"name": "b", "endpoint": "pod-2", "ingress": [{}]})
    assert (ingress(agent), ingress(agent, "pod-2")) == ({0}, {1})
    agent.apply_policies([])
    assert ingress(agent) == ingress(agent, "pod-2") == {0}


def test_entries_that_stay_keep_their_counters(agent: Agent) -> None:
    agent.apply_policies(allow(500))
    key = PolicyKey(500, egress=False)
    with policy_pin(agent) as pinned:
        pinned.update(key.pack(), PolicyEntry(packets=7).pack())
        agent.apply_policies(allow(500, 501))
        value = pinned.lookup(key.pack())
    assert value is not None
    assert PolicyEntry.unpack(value).packets == 7


def test_full_map_refuses_the_whole(agent: Agent) -> None:
    """Neither the map that is full changes, nor any other, nor what is remembered."""
    agent.apply_policies(allow(500))
    many = [allow(*range(600, 600 + SMALL)), {"name": "b", "endpoint": "pod-2", "ingress": [{}]}]
    with pytest.raises(PolicyMapFull, match=rf"policy map of web is too small: 11 entries needed, it holds {SMALL}"):
        agent.apply_policies(many)
    assert (ingress(agent), ingress(agent, "pod-2")) == ({1, 500}, {0})
    assert enforcement.document_of(agent.node) == allow(500)


def test_failure_on_the_way_is_undone(agent: Agent) -> None:
    agent.apply_policies(allow(500, 501))
    with policy_pin(agent) as pinned:
        before = dict(pinned.items())
        update = PolicyUpdate(agent.node, agent.config.globals, parse(allow(500, 502)))
        with pytest.raises(BpfError, match="injected"):
            replace_and_fail(agent, update)
        assert dict(pinned.items()) == before


def test_failure_right_after_a_write_is_undone(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes between the write and what follows it."""
    agent.apply_policies(allow(500))
    with policy_pin(agent) as pinned:
        before = dict(pinned.items())
        write = Map.update

        def interrupted(target: Map, key: bytes, value: bytes) -> None:
            write(target, key, value)
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(Map, "update", interrupted)
        with pytest.raises(KeyboardInterrupt), PolicyUpdate(agent.node, agent.config.globals, parse(allow(501))) as up:
            up.add()
        assert dict(pinned.items()) == before


@pytest.mark.parametrize("before", [None, allow(500)], ids=["none", "other"])
def test_failure_after_the_maps_brings_all_of_them_back(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, before: dict[str, Any] | None
) -> None:
    """The addresses that only the new policies name, too."""
    agent.apply_policies([] if before is None else before)
    enforcement.store(agent.node, before)
    with open_pin(agent.config.globals / "cilium_ipcache") as ipcache, policy_pin(agent) as rules:
        entries = dict(ipcache.items()), dict(rules.items())

        def fails() -> None:
            monkeypatch.undo()
            raise BpfError("routes", 7, "injected")

        monkeypatch.setattr(agent.node, "sync_routes", fails)
        with pytest.raises(BpfError, match="injected"):
            agent.apply_policies(allow(ingress=[{"fromCIDR": ["192.0.2.0/24"]}]))
        assert (dict(ipcache.items()), dict(rules.items())) == entries
    assert enforcement.document_of(agent.node) == before


def test_unknown_endpoint_id_is_one_line(agent: Agent) -> None:
    with pytest.raises(UnknownTarget, match="has no endpoint with id 4711"):
        enforcement.wanted(agent.node, 4711, ())


def replace_and_fail(agent: Agent, update: PolicyUpdate) -> None:
    with update:
        update.add()
        update.remove()
        assert ingress(agent) == {1, 500, 502}
        raise BpfError("update", 7, "injected")


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        pytest.param({"name": "x", "endpoint": "nope"}, UnknownTarget, "no endpoint nope ", id="name"),
        pytest.param(
            {"name": "x", "endpointSelector": {"matchLabels": {"app": "nope"}}}, PolicyError, "selects no", id="labels"
        ),
        pytest.param(allow(0), PolicyError, "identity 0 is out of range", id="identity"),
    ],
)
def test_refused(agent: Agent, document: object, error: type[Exception], words: str) -> None:
    before = enforcement.document_of(agent.node)
    with pytest.raises(error, match=words):
        agent.apply_policies(document)
    assert enforcement.document_of(agent.node) == before


def test_policies_outlive_agent_and_map(agent: Agent) -> None:
    """A map that is made anew gets its entries before a program reads it; so does that of a new pod."""
    agent.apply_policies(allow(500))
    agent.configure(defines=(("POLICY_MAP_SIZE", "16"),))
    try:
        assert agent.reload("web").migrated == (f"cilium_policy_{agent.node.pod('web').endpoint_id:05d}",)
        assert ingress(agent) == {1, 500}
        agent.node.add_pod(PodSpec("late", labels=frozenset({"app=web"})))
        agent.sync()
        agent.reload("late")
        assert ingress(agent, "late") == {1, 500}
        agent.remove_pod("late")
    finally:
        agent.configure(defines=(("POLICY_MAP_SIZE", str(SMALL)),))
        agent.reload("web")


def test_cidrs_are_in_the_ipcache_as_long_as_a_policy_names_them(agent: Agent) -> None:
    network = ip_network("192.0.2.0/24")
    document = allow(ingress=[{"fromCIDR": [str(network)]}])
    agent.apply_policies(document)
    identity = cidrs(parse(document))[network]
    assert ingress(agent) == {1, identity}
    with open_pin(agent.config.globals / "cilium_ipcache") as ipcache:
        key = layouts.ipcache_key(IPv4Address("192.0.2.0"), 24)
        value = ipcache.lookup(key)
        assert value is not None
        assert layouts.RemoteEndpointInfo.unpack(value).sec_identity == identity
        agent.apply_policies([])
        assert ipcache.lookup(layouts.ipcache_key(IPv4Address("192.0.2.9"), 32)) != value


def test_all_of_ipv4_is_one_entry_that_never_is_another_for_a_moment(agent: Agent) -> None:
    """Written twice, as the world first, each update of the maps would deny what the policy allows, for a moment."""
    document = allow(ingress=[{"fromCIDR": ["0.0.0.0/0"]}])
    agent.apply_policies(document)
    identity = cidrs(parse(document))[ip_network("0.0.0.0/0")]
    assert ingress(agent) == {1, identity}
    written = [key for key, _ in contents.identities(agent.node)]
    assert len(written) == len(set(written))
    with open_pin(agent.config.globals / "cilium_ipcache") as ipcache:
        values = [ipcache.lookup(layouts.ipcache_key(address, 0)) for address in (IPv4Address(0), IPv6Address(0))]
    found = [layouts.RemoteEndpointInfo.unpack(value).sec_identity for value in values if value is not None]
    assert found == [identity, WORLD_ID]
    agent.apply_policies([])


def test_all_nodes_or_none() -> None:
    """The second node refuses: the first goes back to what it had."""
    specs = cluster_specs(unique_name()[:28], 2, pods=(PodSpec("web", labels=frozenset({"app=web"})),))
    with Cluster(specs) as cluster:
        one, two = cluster.agents
        two.configure(defines=(("POLICY_MAP_SIZE", str(SMALL)),))
        cluster.start()
        cluster.apply_policies(allow(500))
        with pytest.raises(PolicyMapFull):
            cluster.apply_policies(allow(*range(600, 600 + SMALL)))
        assert ingress(one) == ingress(two) == {1, 500}
        # A pod of the other node is known by its labels.
        cluster.apply_policies(allow(ingress=[{"fromEndpoints": [{"matchLabels": {"name": "late"}}]}]))
        assert ingress(one) == {1}
        cluster.add_pod("2/late")
        assert ingress(one) == ingress(two) == {1, two.node.pod("late").identity}
