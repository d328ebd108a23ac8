"""lib/policy.h: which of the rules decides, against a model that tries the six levels one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.abi.policymap import PolicyEntry, PolicyKey
from scenarios import frames
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, ICMP, ICMPV6, TCP, UDP, eth, icmp, ipv4, ipv6, tcp, udp
from tests.bpf.loaded import DROP, PASS, POD, Build, Datapath, loaded
from tests.bpf.pod import EGRESS, INGRESS, ON, POD4, POD6, from_pod

pytestmark = pytest.mark.privileged

IDENTITIES = (300, 0x12ABCD, 7000)
ADDRESSES: Mapping[int, tuple[IPv4Address, IPv6Address]] = {
    identity: (IPv4Address(f"198.51.100.{n}"), IPv6Address(f"2001:db8::{n}"))
    for n, identity in enumerate(IDENTITIES, 1)
}
PORTS = (53, 80, 443)
ECHO = {4: 8, 6: 128}
ALLOWED, DENIED, UNKNOWN = 0, 181, 133


@dataclass(frozen=True, slots=True)
class Case:
    """A packet: who is at the other end, which way it goes, what it is; of an echo the port is its type."""

    identity: int
    egress: bool
    protocol: int
    port: int
    version: int

    @property
    def number(self) -> int:
        """The protocol as it stands in the packet and in a rule."""
        return ICMPV6 if self.protocol == ICMP and self.version == 6 else self.protocol

    @property
    def rule_port(self) -> int:
        return ECHO[self.version] if self.protocol == ICMP else self.port


def decide(rules: Mapping[PolicyKey, bool], case: Case) -> tuple[int, PolicyKey | None]:
    """Return the verdict and the rule that decides: the table of the six levels, written down as it is."""
    levels = (
        (case.identity, case.number, case.rule_port),
        (0, case.number, case.rule_port),
        (case.identity, case.number, 0),
        (0, case.number, 0),
        (case.identity, 0, 0),
        (0, 0, 0),
    )
    for identity, protocol, port in levels:
        key = PolicyKey(identity, case.egress, protocol, port)
        if key in rules:
            return (DENIED if rules[key] else ALLOWED), key
    return UNKNOWN, None


@dataclass(slots=True)
class Pod:
    """The pod's programs with rules of our own; every packet is the first of its connection."""

    datapath: Datapath
    ports: Iterator[int] = field(default_factory=lambda: count(1024))

    def install(self, rules: Mapping[PolicyKey, bool]) -> None:
        for key in list(self.datapath.policy.keys()):
            self.datapath.policy.delete(key)
        for rule, deny in rules.items():
            self.datapath.policy.update(rule.pack(), rule.entry(deny=deny).pack())

    def counted(self) -> dict[PolicyKey, int]:
        found = {PolicyKey.unpack(k): PolicyEntry.unpack(v).packets for k, v in self.datapath.policy.items()}
        return {key: packets for key, packets in found.items() if packets}

    def run(self, case: Case) -> int:
        own = 1024 + next(self.ports) % 60000
        payload = {
            TCP: tcp(own, case.port, frames.SYN),
            UDP: udp(0, sport=own, dport=case.port),
            ICMP: icmp(ECHO[case.version], ident=own),
        }[case.protocol]
        peer4, peer6 = ADDRESSES[case.identity]
        if case.version == 4:
            packet = ipv4(*((POD4, peer4) if case.egress else (peer4, POD4)), payload, protocol=case.number)
        else:
            packet = ipv6(*((POD6, peer6) if case.egress else (peer6, POD6)), payload, next_header=case.number)
        if case.egress:
            return self.datapath.run("cil_from_container", from_pod(packet)).retval
        mark = (case.identity & 0xFFFF) << 16 | case.identity >> 16 | 0xF00
        frame = eth(POD.mac, POD.node_mac, ETH_P_IP if case.version == 4 else ETH_P_IPV6, packet)
        return self.datapath.run("cil_to_container", frame, mark=mark).retval


@pytest.fixture(scope="module", params=["BPF_MAP_TYPE_LPM_TRIE", "BPF_MAP_TYPE_HASH"], ids=["trie", "hash"])
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    defines = () if request.param == "BPF_MAP_TYPE_LPM_TRIE" else (("POLICY_MAP_TYPE", str(request.param)),)
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, defines=defines), allow=False) as datapath:
        for identity, addresses in ADDRESSES.items():
            for address in addresses:
                datapath.add_identity(address, identity)
        yield Pod(datapath)


def keys() -> st.SearchStrategy[PolicyKey]:
    what = st.one_of(
        st.just((0, 0)),
        st.sampled_from([(p, 0) for p in (ICMP, TCP, UDP, ICMPV6)]),
        st.sampled_from([(ICMP, 8), (ICMPV6, 128), *((p, port) for p in (TCP, UDP) for port in PORTS)]),
    )
    return st.builds(
        lambda identity, egress, rest: PolicyKey(identity, egress, *rest),
        st.sampled_from((0, *IDENTITIES[:2])),
        st.booleans(),
        what,
    )


CASES = st.builds(
    Case,
    st.sampled_from(IDENTITIES),
    st.booleans(),
    st.sampled_from((ICMP, TCP, UDP)),
    st.sampled_from(PORTS),
    st.sampled_from((4, 6)),
)


@given(rules=st.dictionaries(keys(), st.booleans(), max_size=12), cases=st.lists(CASES, min_size=15, max_size=25))
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_rule_that_decides(pod: Pod, rules: dict[PolicyKey, bool], cases: list[Case]) -> None:
    """Some 5000 packets: verdict, reason, and which rule has counted it."""
    pod.install(rules)
    before = dict(pod.datapath.drops())
    counted: dict[PolicyKey, int] = {}
    drops: dict[tuple[int, int], int] = {}
    for case in cases:
        verdict, rule = decide(rules, case)
        assert pod.run(case) == (DROP if verdict else PASS), case
        if rule is not None:
            counted[rule] = counted.get(rule, 0) + 1
        if verdict:
            why = verdict, EGRESS if case.egress else INGRESS
            drops[why] = drops.get(why, 0) + 1
    assert pod.counted() == counted
    after = pod.datapath.drops()
    assert {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)} == drops


LEVELS = [(300, 6, 80), (0, 6, 80), (300, 6, 0), (0, 6, 0), (300, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize("level", range(6))
@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_each_level_gives_way_to_those_above(pod: Pod, level: int, egress: bool) -> None:
    """The narrowest rule denies and all below it allow; without it the next one decides."""
    rules = {PolicyKey(i, egress, p, port): n == level for n, (i, p, port) in enumerate(LEVELS) if n >= level}
    pod.install(rules)
    case = Case(300, egress, TCP, 80, 4)
    assert pod.run(case) == DROP
    assert list(pod.counted()) == [PolicyKey(LEVELS[level][0], egress, *LEVELS[level][1:])]
    del rules[next(iter(rules))]
    pod.install(rules)
    assert pod.run(case) == (PASS if rules else DROP)


def test_without_a_rule_nothing_passes(pod: Pod) -> None:
    pod.install({})
    assert {
        pod.run(Case(i, e, p, 80, v)) for i in IDENTITIES for e in (False, True) for p in (1, 6) for v in (4, 6)
    } == {DROP}


@pytest.mark.parametrize("kind", [133, 135, 136])
@pytest.mark.parametrize(("hops", "verdict"), [(255, PASS), (254, DROP)], ids=["from the link", "from afar"])
def test_neighbour_discovery_of_the_link_needs_no_rule(kind: int, hops: int, verdict: int) -> None:
    router = IPv6Address("fd00:1::1")
    with loaded(ON, allow=False) as datapath:
        message = frames.icmp6(router, POD6, bytes((kind, 0)) + bytes(22))
        packet = ipv6(router, POD6, message, next_header=ICMPV6, hops=hops)
        assert datapath.run("cil_to_container", eth(POD.mac, POD.node_mac, ETH_P_IPV6, packet)).retval == verdict


@pytest.mark.parametrize("kind", [131, 132, 143])
@pytest.mark.parametrize(
    ("source", "target", "verdict"),
    [("fe80::1", "ff02::16", PASS), ("fd00:1::1", "ff02::16", DROP), ("fe80::1", str(POD6), DROP)],
    ids=["from the link", "from afar", "to the pod alone"],
)
def test_who_listens_to_a_group_on_the_link_is_told_whatever_the_rules(
    kind: int, source: str, target: str, verdict: int
) -> None:
    """Behind the option that routers look for, as kernels send it, whenever an address comes up."""
    ends = (IPv6Address(source), IPv6Address(target))
    message = frames.extension(ICMPV6, frames.icmp6(*ends, bytes((kind, 0)) + bytes(26)))
    packet = ipv6(*ends, message, next_header=frames.HOP_BY_HOP, hops=1)
    with loaded(ON, allow=False) as datapath:
        assert datapath.run("cil_to_container", eth(POD.mac, POD.node_mac, ETH_P_IPV6, packet)).retval == verdict
    with loaded(ON) as datapath:
        datapath.run("cil_to_container", eth(POD.mac, POD.node_mac, ETH_P_IPV6, packet))
        assert datapath.allowed(0) == (verdict == DROP), "no rule counts what none concerns"


@pytest.mark.parametrize(("host", "verdict"), [(True, PASS), (False, DROP)], ids=["host", "somebody else"])
def test_the_pod_advertises_itself_to_the_host_alone(host: bool, verdict: int) -> None:
    router = IPv6Address("fd00:1::1")
    with loaded(ON, allow=False) as datapath:
        datapath.add_endpoint(router, host=host)
        message = frames.icmp6(POD6, router, bytes((136, 0)) + bytes(22))
        result = datapath.run("cil_from_container", from_pod(ipv6(POD6, router, message, next_header=ICMPV6, hops=255)))
        assert result.retval == verdict
