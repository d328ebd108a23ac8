"""bpf_host.c with the host firewall: whose packets the host's policy concerns, and by which way they come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest

from lab.abi.conntrack import CtTuple
from lab.abi.policymap import POLICY_ENTRY_ALLOW, PolicyEntry, PolicyKey
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, ICMPV6, MORE_FRAGMENTS, UDP, eth, icmp6, ipv4, ipv6, udp
from tests.bpf.loaded import (
    CILIUM_HOST_MAC,
    CILIUM_NET_MAC,
    DROP,
    HOST,
    PASS,
    PEER4,
    PEER6,
    POD,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    Build,
    Datapath,
    loaded,
)
from tests.bpf.pod import EGRESS, INGRESS, OFF, ON

pytestmark = pytest.mark.privileged

FIREWALL = (("ENABLE_HOST_FIREWALL", "1"),)
Address = IPv4Address | IPv6Address
IDENTITY = 0x12ABCD
IDENTITY_MARK = 0xABCD_0F12


@dataclass(frozen=True, slots=True)
class Host:
    """The host's programs, with nothing allowed."""

    datapath: Datapath
    version: int

    @property
    def own(self) -> Address:
        return ROUTER4 if self.version == 4 else ROUTER6

    @property
    def world(self) -> Address:
        return WORLD4 if self.version == 4 else WORLD6

    @property
    def peer(self) -> Address:
        return PEER4 if self.version == 4 else PEER6

    def frame(self, source: Address, target: Address, *, sport: int = 40000, dport: int = 53) -> bytes:
        payload = udp(sport=sport, dport=dport)
        if isinstance(source, IPv4Address) and isinstance(target, IPv4Address):
            return eth(CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IP, ipv4(source, target, payload))
        assert isinstance(source, IPv6Address)
        assert isinstance(target, IPv6Address)
        return eth(CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IPV6, ipv6(source, target, payload))

    def allow(self, *, egress: bool, identity: int = 0) -> None:
        self.policy.update(PolicyKey(identity, egress).pack(), POLICY_ENTRY_ALLOW)

    @property
    def policy(self):  # type: ignore[no-untyped-def]
        return self.datapath.map(f"cilium_policy_{HOST.id:05d}")

    def counted(self, key: PolicyKey) -> int:
        return PolicyEntry.unpack(self.policy.lookup(key.pack())).packets

    def tracked(self, source: Address, target: Address, flags: int) -> bool:
        table = self.datapath.map(f"cilium_ct_any{self.version}_global")
        return table.lookup(CtTuple(source, target, 40000, 53, UDP, flags).pack()) is not None


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with loaded(Build("bpf_host.c", defines=FIREWALL), allow=False) as datapath:
        for address in (ROUTER4, ROUTER6):
            datapath.add_identity(address, 1)
        for address6 in (PEER4, PEER6):
            datapath.add_identity(address6, IDENTITY)
        yield Host(datapath, request.param)


IN = ["cil_to_host", "cil_from_netdev", "handle_lxc_traffic"]


@pytest.mark.parametrize("program", IN)
def test_to_the_host(host: Host, program: str) -> None:
    """Who it is from, ipcache says; the connection exists from when it is allowed, and not before."""
    frame = host.frame(host.peer, host.own)
    assert host.datapath.run(program, frame).retval == DROP
    assert host.datapath.drops() == {(133, INGRESS): 1}
    assert not host.tracked(host.peer, host.own, 1)
    host.allow(egress=False, identity=IDENTITY)
    for _ in range(2):
        result = host.datapath.run(program, frame)
        assert (result.retval, result.data) == (PASS, frame)
    assert host.counted(PolicyKey(IDENTITY, False)) == 2
    assert host.tracked(host.peer, host.own, 1)
    assert host.datapath.run(program, host.frame(host.world, host.own)).retval == DROP


@pytest.mark.parametrize("program", ["cil_to_host", "cil_from_netdev"])
def test_what_is_not_for_the_host_passes(host: Host, program: str) -> None:
    for target in (host.peer, host.world):
        assert host.datapath.run(program, host.frame(host.world, target)).retval == PASS
    assert host.datapath.drops() == {}


@pytest.mark.parametrize("program", IN)
def test_answers_to_the_host_pass(host: Host, program: str) -> None:
    host.allow(egress=True)
    assert host.datapath.run("cil_to_netdev", host.frame(host.own, host.peer), ingress_ifindex=0).retval == PASS
    answer = host.frame(host.peer, host.own, sport=53, dport=40000)
    assert host.datapath.run(program, answer).retval == PASS
    assert host.datapath.drops() == {}


def test_from_the_host_to_a_device(host: Host) -> None:
    frame = host.frame(host.own, host.world)
    assert host.datapath.run("cil_to_netdev", frame, ingress_ifindex=0).retval == DROP
    assert host.datapath.drops() == {(133, EGRESS): 1}
    host.allow(egress=True, identity=2)
    for _ in range(2):
        assert host.datapath.run("cil_to_netdev", frame, ingress_ifindex=0).retval == PASS
    assert host.counted(PolicyKey(2, True)) == 1, "only what opens a connection"


def test_from_the_host_to_a_pod(host: Host) -> None:
    host.datapath.add_endpoint(host.peer, lxc_id=124)
    frame = host.frame(host.own, host.peer)
    host.datapath.run("cil_from_host", frame, ingress_ifindex=0)
    assert host.datapath.drops() == {(133, INGRESS): 1}
    host.allow(egress=True, identity=IDENTITY)
    host.datapath.run("cil_from_host", frame, ingress_ifindex=0)
    assert host.datapath.drops() == {(133, INGRESS): 1, (140, INGRESS): 1}, "allowed; the pod has no program here"


def test_what_the_host_forwards_is_not_its_own(host: Host) -> None:
    frame = host.frame(host.peer, host.world)
    assert host.datapath.run("cil_to_netdev", frame, mark=IDENTITY_MARK).retval == PASS


def test_what_the_host_marks_as_its_own_is_its_own(host: Host) -> None:
    frame = host.frame(host.own, host.world)
    for mark, verdict in ((0xC00, DROP), (0, PASS)):
        assert host.datapath.run("cil_to_netdev", frame, mark=mark).retval == verdict


def test_what_is_masqueraded_into_cilium_host_is_not_its_own(host: Host) -> None:
    """But a connection of it."""
    assert host.datapath.run("cil_from_host", host.frame(host.own, host.world)).retval == DROP
    assert host.datapath.drops() == {(151, INGRESS): 1}, "not by the policy"
    assert host.tracked(host.own, host.world, 0)


def test_answers_to_a_masqueraded_pod_pass(host: Host) -> None:
    """It leaves with the host's address and its own identity: not the host's policy, but a connection of it."""
    out = host.frame(host.own, host.world)
    assert host.datapath.run("cil_to_netdev", out, mark=IDENTITY_MARK).retval == PASS
    assert host.tracked(host.own, host.world, 0)
    answer = host.frame(host.world, host.own, sport=53, dport=40000)
    assert host.datapath.run("cil_from_netdev", answer).retval == PASS
    assert host.datapath.drops() == {}


@pytest.mark.parametrize("slots", [[11, 12]])
def test_a_missed_tail_call_towards_the_host_is_a_drop(host: Host, slots: list[int]) -> None:
    """Elsewhere in this object the host stays reachable; here a miss would let everything in."""
    for slot in slots:
        host.datapath.empty(slot)
    assert host.datapath.run("cil_to_host", host.frame(host.peer, host.own)).retval == DROP
    assert host.datapath.drops() == {(140, INGRESS): 1}


def test_fragments_to_the_host_are_dropped_and_others_pass(host: Host) -> None:
    for target, verdict in ((ROUTER4, DROP), (PEER4, PASS)):
        frame = eth(CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IP, ipv4(WORLD4, target, udp(), fragment=MORE_FRAGMENTS))
        assert host.datapath.run("cil_from_netdev", frame).retval == verdict
    assert host.datapath.drops() == {(157, INGRESS): 1}


def test_neighbour_discovery_needs_no_rule(host: Host) -> None:
    message = icmp6(PEER6, ROUTER6, bytes((136, 0)) + bytes(22))
    frame = eth(
        CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IPV6, ipv6(PEER6, ROUTER6, message, next_header=ICMPV6, hops=255)
    )
    assert host.datapath.run("cil_from_netdev", frame).retval == PASS


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("build", [OFF, ON], ids=["off", "on"])
def test_a_pod_reaches_the_host_through_its_policy_program(build: Build, version: int) -> None:
    """Which is missing here."""
    firewall = Build(build.source, build.endpoint_routes, defines=FIREWALL)
    with loaded(firewall) as datapath:
        own = (ROUTER4 if version == 4 else ROUTER6, POD.ipv4 if version == 4 else POD.ipv6)
        assert own[1] is not None
        datapath.add_endpoint(own[0], host=True)
        frame = Host(datapath, version).frame(own[1], own[0])
        assert datapath.run("cil_from_container", frame).retval == DROP
        assert datapath.drops() == {(140, EGRESS): 1}


def test_with_endpoint_routes_the_host_asks_its_own_policy_first() -> None:
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=FIREWALL)) as datapath:
        assert POD.ipv4 is not None
        frame = eth(POD.mac, POD.node_mac, ETH_P_IP, ipv4(ROUTER4, POD.ipv4, udp()))
        assert datapath.run("cil_to_container", frame, ingress_ifindex=0).retval == DROP
        assert datapath.drops() == {(140, INGRESS): 1}
        # What that program then calls: the packet is at the device, so it is only let through.
        result = datapath.run("handle_policy", frame, cb=(1, 0, 0, 1, 0))
        assert (result.retval, result.data) == (PASS, frame)
        assert datapath.allowed(0) == 1
