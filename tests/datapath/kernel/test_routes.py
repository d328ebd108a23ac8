from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest

from datapath.endpoint import Endpoint
from datapath.errors import NetlinkError
from datapath.kernel import routes
from datapath.kernel.netlink import NetlinkSocket
from datapath.kernel.routes import Route
from tests.datapath import support
from tests.lab.wires import address, ip, namespace

POD4, POD6 = IPv4Address("10.9.0.7"), IPv6Address("fd00:9::7")
POD = Endpoint(
    id=7,
    ifname="lxc0",
    mac="0a:00:00:00:00:01",
    node_mac="0a:00:00:00:00:02",
    ipv4=POD4,
    ipv6=POD6,
    identity=1007,
)

Address = IPv4Address | IPv6Address


@dataclass
class Place:
    """A namespace with two interfaces that are up, and a network route that covers the pods."""

    netns: str
    netlink: NetlinkSocket
    lxc: int
    other: int

    def show(self, target: Address, table: str = "main") -> list[dict[str, Any]]:
        """Return the routes to exactly this address."""
        family = f"-{target.version}"
        return support.ip(self.netns, family, "route", "show", "table", table, "exact", str(target))

    def add(self, target: Address, *words: str) -> None:
        ip(self.netns, f"-{target.version}", "route", "add", f"{target}/{target.max_prefixlen}", *words)


@pytest.fixture
def place() -> Iterator[Place]:
    with namespace() as path:
        ip(path, "link", "add", "lxc0", "type", "veth", "peer", "name", "peer0")
        ip(path, "link", "add", "up0", "type", "veth", "peer", "name", "peer1")
        for name in ("peer0", "peer1"):
            ip(path, "link", "set", name, "up")
        address(path, "lxc0")
        address(path, "up0", "10.9.255.1/16", "fd00:9:0:0:ffff::1/48")
        with NetlinkSocket(Path(path)) as netlink:
            yield Place(path, netlink, netlink.ifindex("lxc0"), netlink.ifindex("up0"))


def test_an_endpoint_has_a_route_per_address() -> None:
    assert routes.endpoint_routes(POD, 5) == (Route(POD4, 5), Route(POD6, 5))
    assert routes.endpoint_routes(replace(POD, ipv6=None), 5) == (Route(POD4, 5),)
    assert [str(route) for route in routes.endpoint_routes(POD, 5)] == ["10.9.0.7/32", "fd00:9::7/128"]


both = pytest.mark.parametrize("target", [POD4, POD6], ids=["v4", "v6"])


@both
@pytest.mark.privileged
def test_installed_as_at_the_reference_commit(place: Place, target: Address) -> None:
    """Table main, the pod's device, scope link, no gateway, source or MTU, protocol boot (none given)."""
    routes.upsert(place.netlink, Route(target, place.lxc))
    (found,) = place.show(target)
    assert found["dev"] == "lxc0"
    assert not {"gateway", "prefsrc", "via", "metrics"} & found.keys()
    assert found.get("protocol", "boot") == "boot"
    if target.version == 4:
        assert found["scope"] == "link"
    assert support.ip(place.netns, "route", "get", str(target))[0]["dev"] == "lxc0"


@both
@pytest.mark.privileged
def test_twice_is_once(place: Place, target: Address) -> None:
    for _ in range(2):
        routes.upsert(place.netlink, Route(target, place.lxc))
    assert len(place.show(target)) == 1
    for _ in range(2):
        routes.remove(place.netlink, Route(target, place.lxc))
    assert place.show(target) == []


@both
@pytest.mark.privileged
def test_upsert_moves_a_route_to_another_device(place: Place, target: Address) -> None:
    routes.upsert(place.netlink, Route(target, place.other))
    routes.upsert(place.netlink, Route(target, place.lxc))
    assert [found["dev"] for found in place.show(target)] == ["lxc0"]


@both
@pytest.mark.privileged
def test_current_is_the_host_route_only(place: Place, target: Address) -> None:
    """The network route would carry the packet as well, but it is no route of the endpoint."""
    assert routes.current(place.netlink, target) is None
    routes.upsert(place.netlink, Route(target, place.lxc))
    found = routes.current(place.netlink, target)
    assert found is not None
    assert (found.address, found.ifindex) == (target, place.lxc)


@both
@pytest.mark.privileged
@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_route_that_forbids_is_none(place: Place, target: Address, kind: str) -> None:
    ip(place.netns, f"-{target.version}", "route", "add", kind, f"{target}/{target.max_prefixlen}")
    assert routes.current(place.netlink, target) is None


@both
@pytest.mark.privileged
def test_a_local_address_is_none(place: Place, target: Address) -> None:
    """A route of the table local is found first, and is nobody's endpoint route."""
    address(place.netns, "up0", f"{target}/{target.max_prefixlen}")
    found = routes.current(place.netlink, target)
    assert found is None or found.ifindex == place.other


@pytest.mark.privileged
def test_no_route_at_all_is_none(place: Place) -> None:
    assert routes.current(place.netlink, IPv4Address("198.51.100.1")) is None
    assert routes.current(place.netlink, IPv6Address("2001:db8::1")) is None


FOREIGN4 = [
    ["via", "10.9.255.9", "dev", "up0", "proto", "static"],
    ["dev", "up0", "proto", "static", "src", "10.9.255.1", "mtu", "1400"],
    ["dev", "up0", "scope", "link", "proto", "bird"],
]
FOREIGN6 = [
    ["via", "fd00:9:0:0:ffff::9", "dev", "up0", "proto", "static"],
    ["dev", "up0", "proto", "static", "mtu", "1400"],
    ["dev", "up0", "proto", "bird", "pref", "high"],
]


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("target", "words"),
    [*((POD4, words) for words in FOREIGN4), *((POD6, words) for words in FOREIGN6)],
    ids=[f"{version}-{name}" for version in ("v4", "v6") for name in ("gateway", "mtu", "protocol")],
)
def test_a_foreign_route_is_put_back(place: Place, target: Address, words: list[str]) -> None:
    """Whatever it said: gateway, source, MTU, protocol."""
    place.add(target, *words)
    (before,) = place.show(target)
    kept = routes.current(place.netlink, target)
    assert kept is not None
    assert kept.ifindex == place.other
    routes.upsert(place.netlink, Route(target, place.lxc))
    assert [found["dev"] for found in place.show(target)] == ["lxc0"]
    routes.restore(place.netlink, kept)
    assert place.show(target) == [before]


@both
@pytest.mark.privileged
def test_remove_takes_our_route_only(place: Place, target: Address) -> None:
    """A route to the same address through another device is another's."""
    place.add(target, "dev", "up0")
    routes.remove(place.netlink, Route(target, place.lxc))
    assert [found["dev"] for found in place.show(target)] == ["up0"]


@both
@pytest.mark.privileged
def test_removing_what_is_not_there(place: Place, target: Address) -> None:
    routes.remove(place.netlink, Route(target, place.lxc))
    ip(place.netns, "link", "del", "lxc0")
    routes.remove(place.netlink, Route(target, place.lxc))


@both
@pytest.mark.privileged
def test_interface_that_went_away(place: Place, target: Address) -> None:
    ip(place.netns, "link", "del", "lxc0")
    with pytest.raises(NetlinkError, match="install route") as info:
        routes.upsert(place.netlink, Route(target, place.lxc))
    assert info.value.errno in (errno.ENODEV, errno.EINVAL)
