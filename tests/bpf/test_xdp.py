"""bpf_xdp.c, one frame at a time through BPF_PROG_TEST_RUN."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from datapath.kernel.xdp import takes_frags
from lab.abi import layouts
from lab.abi.layouts import HIT_MIXED_LOADS, Program
from scenarios.frames import ETH_P_IP, ETH_P_IPV6, eth, ipv4, ipv6, udp
from tests.bpf.loaded import CILIUM_HOST_MAC, DEVICE, POD, XDP_DROP, XDP_PASS, Build, Datapath, loaded
from tests.bpf.pod import ARP_REQUEST, INGRESS
from tests.bpf.test_mixed_loads import hand_over
from tests.bpf.xdp import deny_prefixes

pytestmark = pytest.mark.privileged

XDP = Build("bpf_xdp.c")
TARGETS = {4: IPv4Address("10.1.0.5"), 6: IPv6Address("fd00:1::5")}


def frame_from(source: str, payload: int = 32) -> bytes:
    address = ip_address(source)
    if isinstance(address, IPv4Address):
        return eth(CILIUM_HOST_MAC, CILIUM_HOST_MAC, ETH_P_IP, ipv4(address, IPv4Address("10.1.0.5"), udp(payload)))
    return eth(CILIUM_HOST_MAC, CILIUM_HOST_MAC, ETH_P_IPV6, ipv6(address, IPv6Address("fd00:1::5"), udp(payload)))


@pytest.fixture(scope="module")
def device() -> Iterator[Datapath]:
    with loaded(XDP) as datapath:
        deny_prefixes(datapath, "192.0.2.0/25", "198.51.100.7/32", "2001:db8:bad::/48", "2001:db8::7/128")
        yield datapath


@pytest.mark.parametrize(
    ("source", "denied"),
    [
        ("192.0.2.0", True),
        ("192.0.2.127", True),
        ("192.0.2.128", False),
        ("198.51.100.7", True),
        ("198.51.100.6", False),
        ("2001:db8:bad:ffff::1", True),
        ("2001:db8:bae::1", False),
        ("2001:db8::7", True),
        ("2001:db8::8", False),
    ],
)
def test_denied_are_the_prefixes_and_the_addresses_of_the_maps(device: Datapath, source: str, denied: bool) -> None:
    before = device.drops().get((181, INGRESS), 0)
    frame = frame_from(source)
    result = device.run("cil_xdp_entry", frame)
    assert (result.retval, result.data) == (XDP_DROP if denied else XDP_PASS, frame)
    assert device.drops() == ({(181, INGRESS): before + denied} if before or denied else {})


@pytest.mark.skipif(os.geteuid() == 0 and not takes_frags(), reason="no XDP of frames in pieces before Linux 5.18")
def test_a_frame_in_several_pieces_counts_as_a_whole(device: Datapath) -> None:
    """Its headers are in the first piece, which is all that the program can read."""

    def counted() -> int:
        key = layouts.MetricsKey(181, INGRESS).pack()
        values = device.map("cilium_metrics").lookup_percpu(key)
        return sum(layouts.MetricsValue.unpack(value).length for value in values)

    denied, passing = (frame_from(source, payload=8000) for source in ("192.0.2.0", "192.0.2.128"))
    device.run("cil_xdp_entry", frame_from("192.0.2.0"))
    before = counted()
    assert device.run("cil_xdp_entry", denied).retval == XDP_DROP
    assert counted() == before + len(denied)
    assert device.run("cil_xdp_entry", passing).retval == XDP_PASS


@pytest.mark.parametrize("frame", [ARP_REQUEST, eth(POD.mac, POD.mac, 0x88CC, bytes(46)), bytes(14)])
def test_what_is_not_ip_is_left_to_the_kernel(device: Datapath, frame: bytes) -> None:
    assert device.run("cil_xdp_entry", frame).retval == XDP_PASS


@pytest.mark.parametrize(("version", "source"), [(4, "192.0.2.200"), (6, "2001:db8::8")])
def test_a_packet_that_meets_two_loads_is_counted(version: int, source: str) -> None:
    """They need the scratch map in common, as the words of a socket buffer are: it is pinned."""
    entry, chain = Program.XDP_ENTRY, Program[f"IPV{version}_XDP"]
    with loaded(XDP) as old:
        old.run("cil_xdp_entry", frame_from(source))
        assert old.hits() == {(POD.generation, 0, entry): 1, (POD.generation, 0, chain): 1}
        with loaded(XDP, generation=POD.generation + 1) as new:
            hand_over(old, new, f"tail_xdp_ipv{version}")
            old.run("cil_xdp_entry", frame_from(source))
            # The other load's own scratch map says that no chain of it has begun.
            assert new.hits() == {(POD.generation + 1, 0, chain | HIT_MIXED_LOADS): 1}


def test_each_device_has_a_calls_map_of_its_own(device: Datapath) -> None:
    assert device.calls.name == f"cilium_calls_xdp_{DEVICE:05d}"
