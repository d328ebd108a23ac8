"""What programs say in cilium_events: drops, traces and verdicts of the policy, read from the rings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.abi import notifications, policymap
from lab.abi.conntrack import ConnState
from lab.abi.notifications import DropNotify, PolicyVerdictNotify, TraceNotify, TracePoint, source_file
from lab.abi.policymap import PolicyMatch
from scenarios.frames import ACK, SYN, TCP, UDP, tcp, udp
from tests.bpf import perf
from tests.bpf.flow import PORT, SERVICE, Peer
from tests.bpf.loaded import DROP, LIBRARY, PASS, POD, Build, loaded
from tests.bpf.pod import from_pod

pytestmark = pytest.mark.privileged

NODE, WORLD = 1, 2
Message = DropNotify | TraceNotify | PolicyVerdictNotify
MESSAGES: dict[int, type[DropNotify] | type[TraceNotify] | type[PolicyVerdictNotify]] = {
    1: DropNotify,
    4: TraceNotify,
    5: PolicyVerdictNotify,
}
NO_VERDICTS = ("POLICY_VERDICT_NOTIFY", "0")


@contextmanager
def listening(
    *options: tuple[str, str], allow: bool = True, version: int = 4, verdicts: bool = False
) -> Iterator[tuple[Peer, perf.Events]]:
    options = options if verdicts else (*options, NO_VERDICTS)
    with loaded(Build("bpf_lxc.c", endpoint_routes=True, options=options), allow=allow) as datapath:
        datapath.add_identity(Peer(datapath, version).address, 600)
        with perf.opened(datapath.map("cilium_events")) as events:
            yield Peer(datapath, version), events


def parse(messages: list[bytes]) -> list[Message]:
    return [MESSAGES[message[0]].unpack(message) for message in messages]


@pytest.mark.parametrize("version", [4, 6])
def test_a_drop(version: int) -> None:
    with listening(allow=False, version=version) as (peer, events):
        packet = peer.packet(UDP, udp(), out=True)
        assert peer.out(UDP, udp()).retval == DROP
        (message,) = events.read()
    drop = DropNotify.unpack(message)
    frame = from_pod(packet)
    assert (drop.header.type, drop.header.subtype, drop.header.source) == (1, 133, POD.id)
    assert (drop.src_label, drop.dst_label, drop.ifindex) == (POD.identity, 600, 1)
    assert source_file(drop) == "policy.h"
    assert "DROP_POLICY" in (LIBRARY / "lib/policy.h").read_text().splitlines()[drop.line - 1]
    assert (drop.header.len_orig, drop.header.len_cap) == (len(frame), len(frame))
    assert message[DropNotify.SIZE :][: len(frame)] == frame


def test_a_long_packet_is_cut() -> None:
    with listening(allow=False) as (peer, events):
        peer.out(UDP, udp(1000))
        (message,) = events.read()
    header = notifications.NotifyHeader.unpack(message)
    assert (header.len_orig, header.len_cap) == (14 + 20 + 8 + 1000, 128)


def test_a_drop_into_the_pod_names_the_pod() -> None:
    with listening(allow=False) as (peer, events):
        peer.into(UDP, udp())
        (drop,) = parse(events.read())
    assert isinstance(drop, DropNotify)
    assert (drop.src_label, drop.dst_label, drop.dst_id) == (600, POD.identity, POD.id)


def test_traces_of_a_connection_are_aggregated() -> None:
    """A trace for the first packet, for new flags, for the first answer; none in between."""
    with listening() as (peer, events):
        for flags in (SYN, SYN, ACK, ACK):
            peer.out(TCP, tcp(PORT, SERVICE, flags))
        peer.into(TCP, tcp(SERVICE, PORT, SYN | ACK))
        peer.into(TCP, tcp(SERVICE, PORT, ACK))
        found = parse(events.read())
    assert [(TracePoint(t.header.subtype), ConnState(t.reason)) for t in found if isinstance(t, TraceNotify)] == [
        (TracePoint.TO_STACK, ConnState.NEW),
        (TracePoint.TO_LXC, ConnState.REPLY),
    ]
    first = found[0]
    assert isinstance(first, TraceNotify)
    assert (first.src_label, first.dst_label, first.header.source) == (POD.identity, 600, POD.id)


def test_without_aggregation_every_packet_is_traced_in_and_out() -> None:
    with listening(("MONITOR_AGGREGATION", "0")) as (peer, events):
        for _ in range(2):
            peer.out(UDP, udp())
        found = [TracePoint(m.header.subtype) for m in parse(events.read())]
    assert found == [TracePoint.FROM_LXC, TracePoint.TO_STACK] * 2


@pytest.mark.parametrize("version", [4, 6])
def test_verdicts(version: int) -> None:
    """One for what opens a connection, one for each packet that is refused."""
    with listening(verdicts=True, allow=False, version=version) as (peer, events):
        rule = policymap.PolicyKey(600, True, TCP, SERVICE)
        peer.datapath.policy.update(rule.pack(), rule.entry(deny=False).pack())
        for port in (SERVICE, SERVICE, 81, 81):
            peer.out(TCP, tcp(PORT, port, SYN))
        found = [m for m in parse(events.read()) if isinstance(m, PolicyVerdictNotify)]
    assert [(m.dst_port, m.verdict, PolicyMatch(m.match_type)) for m in found] == [
        (SERVICE, 0, PolicyMatch.L3_L4),
        (81, -133, PolicyMatch.NONE),
        (81, -133, PolicyMatch.NONE),
    ]
    assert {(m.remote_label, m.protocol, m.dir, m.ipv6) for m in found} == {(600, TCP, 2, version == 6)}


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (policymap.PolicyKey(0, False, UDP, 53), PolicyMatch.L4_ONLY),
        (policymap.PolicyKey(600, False, UDP), PolicyMatch.L3_PROTO),
        (policymap.PolicyKey(0, False, UDP), PolicyMatch.PROTO_ONLY),
        (policymap.PolicyKey(600, False), PolicyMatch.L3_ONLY),
        (policymap.PolicyKey(0, False), PolicyMatch.ALL),
    ],
    ids=lambda value: value.name if isinstance(value, PolicyMatch) else "",
)
@pytest.mark.parametrize("deny", [False, True], ids=["allow", "deny"])
def test_a_verdict_says_what_the_rule_names(rule: policymap.PolicyKey, match: PolicyMatch, deny: bool) -> None:
    with listening(verdicts=True, allow=False) as (peer, events):
        peer.datapath.policy.update(rule.pack(), rule.entry(deny=deny).pack())
        assert peer.into(UDP, udp()).retval == (DROP if deny else PASS)
        (verdict,) = (m for m in parse(events.read()) if isinstance(m, PolicyVerdictNotify))
    assert (verdict.verdict, PolicyMatch(verdict.match_type), verdict.dir) == (-181 if deny else 0, match, 1)


def test_switched_off() -> None:
    options = (("DROP_NOTIFY", "0"), ("TRACE_NOTIFY", "0"), NO_VERDICTS)
    build = Build("bpf_lxc.c", endpoint_routes=True, options=options)
    with loaded(build) as datapath, perf.opened(datapath.map("cilium_events")) as events:
        peer = Peer(datapath, 4)
        assert peer.out(UDP, udp()).retval == PASS
        assert peer.out(47, udp()).retval == DROP
        assert events.read() == []
        assert datapath.drops() == {(137, 2): 1}
