"""The host's and a pod's programs together, with the maps that they share: one calls the other's policy program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from datapath.kernel.map import Map
from datapath.kernel.uapi import TestRun
from lab.abi.layouts import Program
from lab.abi.policymap import POLICY_ENTRY_ALLOW, PolicyEntry, PolicyKey
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import (
    CILIUM_HOST_MAC,
    DROP,
    HOST,
    PASS,
    POD,
    REDIRECT,
    ROUTER4,
    ROUTER6,
    Build,
    Datapath,
    loaded,
    mark_of,
)
from tests.bpf.pod import EGRESS, INGRESS, POD4, POD6

pytestmark = pytest.mark.privileged

FIREWALL = (("ENABLE_HOST_FIREWALL", "1"),)
ASK, ANSWER = {"sport": 40000, "dport": 53}, {"sport": 53, "dport": 40000}
Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Both:
    """The two objects, with nothing allowed; `version` is the family of the packets."""

    host: Datapath
    pod: Datapath
    version: int

    @property
    def ends(self) -> tuple[Address, Address]:
        return (ROUTER4, POD4) if self.version == 4 else (ROUTER6, POD6)

    def frame(self, macs: tuple[str, str], ports: dict[str, int], *, to_pod: bool, ttl: int = 64) -> bytes:
        source, target = self.ends if to_pod else self.ends[::-1]
        if isinstance(source, IPv4Address) and isinstance(target, IPv4Address):
            return eth(*macs, ETH_P_IP, ipv4(source, target, udp(**ports), ttl=ttl))
        assert isinstance(source, IPv6Address)
        assert isinstance(target, IPv6Address)
        return eth(*macs, ETH_P_IPV6, ipv6(source, target, udp(**ports), hops=ttl))

    def into_pod(self, ports: dict[str, int]) -> TestRun:
        """Run what the stack does with a packet of the host: the egress program of the pod's device."""
        frame = self.frame((POD.mac, POD.node_mac), ports, to_pod=True)
        result = self.pod.run("cil_to_container", frame, ingress_ifindex=0)
        assert result.data == frame
        return result

    def from_pod(self, ports: dict[str, int]) -> TestRun:
        return self.pod.run("cil_from_container", self.frame((POD.node_mac, POD.mac), ports, to_pod=False))

    def allow(self, rules: Map, key: PolicyKey) -> None:
        rules.update(key.pack(), POLICY_ENTRY_ALLOW)

    def allow_both(self, *, to_pod: bool) -> None:
        """Let one of the two open connections to the other."""
        self.allow(self.host_policy, PolicyKey(POD.identity, to_pod))
        self.allow(self.pod.policy, PolicyKey(HOST.identity, not to_pod))

    def counted(self, *, to_pod: bool) -> tuple[int, int]:
        """Return how many packets the rules of host and pod have met."""
        keys = (
            (self.host_policy, PolicyKey(POD.identity, to_pod)),
            (self.pod.policy, PolicyKey(HOST.identity, not to_pod)),
        )
        found = [rules.lookup(key.pack()) for rules, key in keys]
        host, pod = (PolicyEntry.unpack(value).packets for value in found if value is not None)
        return host, pod

    @property
    def host_policy(self) -> Map:
        return self.host.map(f"cilium_policy_{HOST.id:05d}")

    def programs(self) -> list[Program]:
        """Return which have run so far, in the order of their numbers."""
        return sorted({Program(program) for _, _, program in self.pod.hits()})


@pytest.fixture
def node(bpffs: Path, request: pytest.FixtureRequest) -> Iterator[Both]:
    endpoint_routes, version = request.param
    host_build, pod_build = (Build(source, endpoint_routes, defines=FIREWALL) for source in ("bpf_host.c", "bpf_lxc.c"))
    with (
        loaded(host_build, allow=False, pin_dir=bpffs) as host,
        loaded(pod_build, allow=False, pin_dir=bpffs) as pod,
    ):
        found = Both(host, pod, version)
        for address, identity in zip(found.ends, (HOST.identity, POD.identity), strict=True):
            host.add_identity(address, identity)
            host.add_endpoint(address, host=identity == HOST.identity)
        yield found


def modes(*endpoint_routes: bool) -> pytest.MarkDecorator:
    """Run the test in these modes, in both families."""
    values = {f"{'on' if on else 'off'}-v{version}": (on, version) for on in endpoint_routes for version in (4, 6)}
    return pytest.mark.parametrize("node", values.values(), ids=values, indirect=True)


@modes(True)
def test_from_the_host_to_a_pod_by_both_policies(node: Both) -> None:
    """The egress program of the pod's device asks the host's, which hands the packet to the pod's policy program."""
    assert node.into_pod(ASK).retval == DROP
    assert node.pod.drops() == {(133, EGRESS): 1}, "the host may not send it"
    node.allow(node.host_policy, PolicyKey(POD.identity, True))
    assert node.into_pod(ASK).retval == DROP
    assert node.pod.drops() == {(133, EGRESS): 1, (133, INGRESS): 1}, "the pod may not get it"
    node.allow_both(to_pod=True)
    for _ in range(2):
        result = node.into_pod(ASK)
        assert (result.retval, mark_of(result)) == (PASS, 0)
    assert node.counted(to_pod=True) == (0, 2), "the host's policy meets only what opens a connection, and did before"
    names = ("CT_INGRESS_POLICY_ONLY", "POLICY")
    tails = {Program[f"IPV{node.version}_{name}"] for name in names}
    assert set(node.programs()) == {Program.TO_CONTAINER, Program.HANDLE_LXC_TRAFFIC, Program.HANDLE_POLICY, *tails}


@modes(True)
def test_the_answer_of_the_pod_passes_both(node: Both) -> None:
    node.allow_both(to_pod=True)
    assert node.into_pod(ASK).retval == PASS
    result = node.from_pod(ANSWER)
    assert (result.retval, mark_of(result)) == (PASS, POD.identity << 16 & 0xFFFF_0000 | POD.identity >> 16 | 0xF00)
    assert node.from_pod(ASK).retval == DROP, "a connection of its own is another matter"
    assert node.counted(to_pod=True) == (1, 1)


@modes(False, True)
def test_from_a_pod_to_the_host_by_both_policies(node: Both) -> None:
    assert node.from_pod(ASK).retval == DROP
    node.allow(node.pod.policy, PolicyKey(HOST.identity, True))
    assert node.from_pod(ASK).retval == DROP
    assert node.pod.drops() == {(133, EGRESS): 1, (133, INGRESS): 1}, "first the pod's policy, then the host's"
    node.allow_both(to_pod=False)
    assert {node.from_pod(ASK).retval for _ in range(2)} == {PASS}
    assert node.counted(to_pod=False) == (2, 0)


@modes(False)
def test_the_host_delivers_to_a_pods_policy_program(node: Both) -> None:
    """With endpoint routes off the packet comes by cilium_host."""
    macs = (CILIUM_HOST_MAC, CILIUM_HOST_MAC)
    node.allow_both(to_pod=True)
    result = node.host.run("cil_from_host", node.frame(macs, ASK, to_pod=True), ingress_ifindex=0)
    assert result.retval == REDIRECT
    assert result.data == node.frame(("02:cc:00:00:00:01", "02:cc:00:00:00:02"), ASK, to_pod=True, ttl=63)
    assert node.counted(to_pod=True) == (1, 1)
    assert node.from_pod(ANSWER).retval == PASS
    assert node.pod.drops() == {}
