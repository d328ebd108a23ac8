"""Counters of losses, each moved by a loss."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from lab.system.netns import enter
from lab.system.tools import run
from lab.watch.net_counters import by_reasons, moved, read
from tests.lab.wires import ip, veth_pair
from tests.netns import nsenter

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize(
    ("target", "counter"), [("192.0.2.1", "IpExt InNoRoutes"), ("2001:db8::1", "Ip6InNoRoutes")], ids=["v4", "v6"]
)
def test_a_packet_without_a_route_moves_the_counter_of_its_namespace(target: str, counter: str) -> None:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with veth_pair() as pair:
        run(nsenter(pair.b, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
        ip(pair.a, "route", "add", target, "via", "fd09::2" if ":" in target else "10.9.0.2")
        namespaces = {"a": Path(pair.a), "b": Path(pair.b)}
        before = read(namespaces)
        with enter(Path(pair.a)):
            sock = socket.socket(family, socket.SOCK_DGRAM)
        with sock:
            sock.sendto(b"lost", (target, 9))
        deadline = time.monotonic() + 5
        while ("b", counter) not in (found := moved(before, read(namespaces))) and time.monotonic() < deadline:
            time.sleep(0.01)
        # The kernel may have sent one as well.
        assert found.get(("b", counter), 0) >= 1


def test_nothing_moves_by_itself_and_a_namespace_that_is_gone_has_no_counters(tmp_path: Path) -> None:
    with veth_pair() as pair:
        namespaces = {"a": Path(pair.a), "gone": tmp_path / "gone"}
        before = read(namespaces)
        assert ("a", "eth0 rx_dropped") in before
        assert ("a", "Udp RcvbufErrors") in before
        assert ("a", "Ip6InDiscards") in before
        assert not any(name == "gone" for name, _ in before)
        ip(pair.a, "link", "show")
        assert moved(before, read(namespaces)) == {}


@pytest.mark.parametrize("target", ["10.9.0.2", "fd09::2"], ids=["v4", "v6"])
def test_what_nobody_takes_is_answered_and_not_lost(target: str) -> None:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    unused = 253  # for experimentation and testing (RFC 3692)
    with veth_pair() as pair:
        before = read({"b": Path(pair.b)})
        with enter(Path(pair.a)):
            sock = socket.socket(family, socket.SOCK_RAW, unused)
        with sock:
            sock.settimeout(5)
            sock.connect((target, 0))
            sock.send(b"what is it?")
            with pytest.raises(OSError, match="Protocol"):  # ENOPROTOOPT, EPROTO
                sock.recv(100)
        # A new link may count packets of its own as without a route.
        counted = {name for _, name in moved(before, read({"b": Path(pair.b)}))}
        assert counted <= {"Ip6InNoRoutes"}


def test_counters_of_a_reason_are_those_of_the_ip_layer_or_of_every_device() -> None:
    assert by_reasons("Ip6OutNoRoutes", ["UDP_CSUM", "IP_OUTNOROUTES"])
    assert not by_reasons("Ip6OutNoRoutes", ["IP_INNOROUTES"])
    assert by_reasons("lxc1 rx_dropped", ["UNHANDLED_PROTO"])
    assert not by_reasons("lxc1 rx_errors", ["UNHANDLED_PROTO", "NO_SUCH_REASON"])


def test_a_new_interface_starts_from_zero() -> None:
    assert moved({("a", "eth0 rx_dropped"): 5}, {("a", "eth0 rx_dropped"): 5, ("a", "eth1 rx_dropped"): 2}) == {
        ("a", "eth1 rx_dropped"): 2
    }
