"""bpf_overlay.c on packets that have a tunnel key: who they are from, and where they go."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from scenarios.frames import ETH_P_IP, ETH_P_IPV6, MORE_FRAGMENTS, eth, ipv4, ipv6, udp
from tests.bpf.loaded import (
    CILIUM_HOST_MAC,
    CILIUM_NET_MAC,
    DROP,
    PEER4,
    PEER6,
    REDIRECT,
    ROUTER4,
    ROUTER6,
    WORLD4,
    WORLD6,
    Build,
    loaded,
    mark_of,
)
from tests.bpf.pod import INGRESS
from tests.bpf.tunnel import tunnelled

pytestmark = pytest.mark.privileged

OFF, ON = Build("bpf_overlay.c"), Build("bpf_overlay.c", endpoint_routes=True)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
RANGE = 1 << 24 | 1


def frame_to(version: int, target: IPv4Address | IPv6Address, *, ttl: int = 64) -> bytes:
    macs = "02:00:00:00:00:09", "02:00:00:00:00:08"
    if isinstance(target, IPv4Address):
        return eth(*macs, ETH_P_IP, ipv4(WORLD4, target, udp(), ttl=ttl))
    return eth(*macs, ETH_P_IPV6, ipv6(WORLD6, target, udp(), hops=ttl))


@VERSIONS
@pytest.mark.parametrize(
    ("vni", "known", "identity"),
    [
        (5000, 600, 5000),
        (6, None, 6),
        (6, 7, 7),
        (7, 6, 6),
        (2, None, 2),
        (2, 600, 600),
        (2, 1, 2),
        (2, RANGE, 2),
    ],
    ids=[
        "pod",
        "node",
        "API server's node",
        "no longer the API server's",
        "world",
        "known here",
        "masqueraded",
        "range, which the device's program looks up",
    ],
)
def test_who_it_is_from(version: int, vni: int, known: int | None, identity: int) -> None:
    peer = PEER4 if version == 4 else PEER6
    with loaded(ON) as datapath, tunnelled(datapath, vni) as out:
        datapath.add_endpoint(peer, lxc_id=124)
        if known is not None:
            datapath.add_identity(WORLD4 if version == 4 else WORLD6, known)
        result = out.run(frame_to(version, peer))
        assert result.retval == REDIRECT
        assert mark_of(result) == identity << 16 | 0xF00
        assert result.data[:12] == bytes.fromhex("02cc00000001" + "02cc00000002")
        assert result.data[14:] == frame_to(version, peer, ttl=63)[14:]


@VERSIONS
def test_with_endpoint_routes_off_the_pods_policy_program_is_called(version: int) -> None:
    """Which is missing here."""
    peer = PEER4 if version == 4 else PEER6
    with loaded(OFF) as datapath, tunnelled(datapath, 5000) as out:
        datapath.add_endpoint(peer, lxc_id=124)
        assert out.run(frame_to(version, peer)).retval == DROP
        assert datapath.drops() == {(140, INGRESS): 1}


@VERSIONS
@pytest.mark.parametrize("known", [False, True], ids=["nobody", "host"])
def test_what_is_for_no_pod_goes_to_the_host(version: int, known: bool) -> None:
    """By cilium_net, whose other end is cilium_host; it is the stack that counts down the time to live."""
    router = ROUTER4 if version == 4 else ROUTER6
    with loaded(OFF) as datapath, tunnelled(datapath, 5000) as out:
        if known:
            datapath.add_endpoint(router, host=True)
        result = out.run(frame_to(version, router, ttl=1))
        macs = bytes.fromhex((CILIUM_HOST_MAC + CILIUM_NET_MAC).replace(":", ""))
        assert (result.retval, result.data) == (REDIRECT, macs + frame_to(version, router, ttl=1)[12:])
        assert datapath.drops() == {}


@pytest.mark.parametrize(
    ("packet", "reason"),
    [(ipv4(WORLD4, PEER4, udp(), total=200), 134), (ipv4(WORLD4, PEER4, udp(), fragment=MORE_FRAGMENTS), 157)],
    ids=["cut off", "fragment"],
)
def test_what_cannot_be_parsed_is_dropped(packet: bytes, reason: int) -> None:
    with loaded(OFF) as datapath, tunnelled(datapath, 5000) as out:
        assert out.run(eth(CILIUM_HOST_MAC, CILIUM_NET_MAC, ETH_P_IP, packet)).retval == DROP
        assert datapath.drops() == {(reason, INGRESS): 1}
