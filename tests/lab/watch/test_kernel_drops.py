"""The kernel's drops, each provoked: with its reason, its interface and its packet."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.system.netns import enter
from lab.system.symbols import places
from lab.system.tools import run
from lab.watch import kernel_drops
from lab.watch.kernel_drops import DropsUnavailable, KernelDrop, KernelDrops
from tests.lab.wires import Pair, ip, veth_pair
from tests.netns import nsenter

pytestmark = pytest.mark.privileged

PORT = 7999


@pytest.fixture
def pair() -> Iterator[Pair]:
    with veth_pair() as pair:
        yield pair


@pytest.fixture
def drops(pair: Pair) -> Iterator[KernelDrops]:
    if not kernel_drops.VMLINUX.exists():
        pytest.skip("the kernel has no BTF: CONFIG_DEBUG_INFO_BTF is not set")
    with KernelDrops() as drops:
        drops.watch([Path(netns).stat().st_ino for netns in (pair.a, pair.b)])
        yield drops


def send(netns: str, source: str, target: str, port: int = PORT) -> None:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with enter(Path(netns)):
        sock = socket.socket(family, socket.SOCK_DGRAM)
    with sock:
        sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        sock.bind((source, 0))
        sock.sendto(b"dropped", (target, port))


def wait_for(drops: KernelDrops, text: str, within: float = 10.0) -> KernelDrop:
    """Return the first drop of a packet whose text ends so."""
    deadline = time.monotonic() + within
    while True:
        drops.drain()
        found = [drop for drop in drops.events if str(drop.packet).endswith(text)]
        if found or time.monotonic() > deadline:
            assert found, [(drop.reason, str(drop.packet)) for drop in drops.events]
            return found[0]
        time.sleep(0.02)


def test_a_packet_from_where_no_route_leads_back_is_dropped_for_its_source(pair: Pair, drops: KernelDrops) -> None:
    run(nsenter(pair.b, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"))
    ip(pair.a, "address", "add", "198.51.100.1/32", "dev", "eth0")
    # Known before: b does not answer the ARP request of such an address.
    send(pair.a, "10.9.0.1", "10.9.0.2", PORT + 1)
    before = time.monotonic_ns()
    send(pair.a, "198.51.100.1", "10.9.0.2")
    found = wait_for(drops, f"-> 10.9.0.2:{PORT} udp")
    assert found.reason == "IP_RPFILTER"
    assert (found.ifname, found.netns) == ("eth0", Path(pair.b).stat().st_ino)
    assert before < found.time_ns < time.monotonic_ns()


@pytest.mark.parametrize(("source", "target"), [("10.9.0.1", "192.0.2.1"), ("fd09::1", "2001:db8::1")])
def test_a_forwarder_without_a_route_is_named(pair: Pair, drops: KernelDrops, source: str, target: str) -> None:
    run(nsenter(pair.b, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
    ip(pair.a, "route", "add", target, "via", "fd09::2" if ":" in target else "10.9.0.2")
    send(pair.a, source, target)
    found = wait_for(drops, f"{target}{']' if ':' in target else ''}:{PORT} udp")
    assert found.reason in ("IP_INNOROUTES", "IP_OUTNOROUTES", "IP_INADDRERRORS")
    assert found.netns == Path(pair.b).stat().st_ino
    (place,) = places([found.location]).values()
    assert "+0x" in place


def test_a_neighbour_that_does_not_answer_is_named(pair: Pair, drops: KernelDrops) -> None:
    run(nsenter(pair.a, "sysctl", "-qw", "net.ipv4.neigh.eth0.retrans_time_ms=20"))
    send(pair.a, "10.9.0.1", "10.9.0.9")
    found = wait_for(drops, f"-> 10.9.0.9:{PORT} udp")
    assert found.reason == "NEIGH_FAILED"
    assert found.netns == Path(pair.a).stat().st_ino


def test_a_port_without_a_socket_is_named(pair: Pair, drops: KernelDrops) -> None:
    send(pair.a, "fd09::1", "fd09::2")
    assert wait_for(drops, f"-> [fd09::2]:{PORT} udp").reason == "NO_SOCKET"


def test_what_arrives_is_no_drop_and_other_namespaces_are_not_told_of(pair: Pair, drops: KernelDrops) -> None:
    with enter(Path(pair.b)):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, veth_pair() as others:
        listener.bind(("10.9.0.2", PORT))
        listener.settimeout(5)
        send(others.a, "10.9.0.1", "10.9.0.2", PORT + 1)
        for _ in range(100):
            send(pair.a, "10.9.0.1", "10.9.0.2")
            assert listener.recv(64) == b"dropped"
        # The last of several: what came before it would have been told of before it.
        send(pair.a, "10.9.0.1", "10.9.0.2", PORT + 2)
        wait_for(drops, f":{PORT + 2} udp")
    assert [str(drop.packet) for drop in drops.events if drop.packet and drop.packet.protocol == 17] == [
        str(wait_for(drops, f":{PORT + 2} udp").packet)
    ]
    assert drops.lost == 0


def test_a_namespace_that_is_watched_no_longer_is_not_told_of(pair: Pair, drops: KernelDrops) -> None:
    """When it is gone, its number is the next one's, which may be of another lab."""
    # The first packet waits for its neighbour.
    send(pair.a, "fd09::1", "fd09::2")
    wait_for(drops, f":{PORT} udp")
    drops.watch([])
    send(pair.a, "fd09::1", "fd09::2", PORT + 1)
    drops.watch([Path(netns).stat().st_ino for netns in (pair.a, pair.b)])
    send(pair.a, "fd09::1", "fd09::2", PORT + 2)
    wait_for(drops, f":{PORT + 2} udp")
    assert [drop for drop in drops.events if str(drop.packet).endswith(f":{PORT + 1} udp")] == []


def test_drops_that_are_not_read_in_time_are_counted(pair: Pair, drops: KernelDrops) -> None:
    with enter(Path(pair.a)):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with sock:
        for _ in range(20_000):
            try:
                sock.sendto(b"dropped", ("fd09::2", PORT))
            except ConnectionRefusedError:
                continue
    # A record of the ring says so with the next one that fits; the last ones have none.
    drops.drain()
    assert drops.lost > 0


def test_a_kernel_without_types_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_drops.tracing.cache_clear()
    monkeypatch.setattr(kernel_drops, "VMLINUX", tmp_path / "vmlinux")
    with pytest.raises(DropsUnavailable, match="CONFIG_DEBUG_INFO_BTF"), KernelDrops():
        pass
    kernel_drops.tracing.cache_clear()
