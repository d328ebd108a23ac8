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
from datapath.kernel.routes import Installed, Route, RouteStays
from lab.system.tools import run
from tests.datapath import support
from tests.datapath.support import until
from tests.lab.wires import address, ip, namespace
from tests.netns import nsenter

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


@both
@pytest.mark.privileged
def test_a_host_route_of_another_table_is_none(place: Place, target: Address) -> None:
    place.add(target, "dev", "lxc0", "table", "200")
    ip(place.netns, f"-{target.version}", "rule", "add", "pref", "100", "lookup", "200")
    assert routes.current(place.netlink, target) is None


@pytest.mark.privileged
def test_no_route_at_all_is_none(place: Place) -> None:
    assert routes.current(place.netlink, IPv4Address("198.51.100.1")) is None
    assert routes.current(place.netlink, IPv6Address("2001:db8::1")) is None


FOREIGN4 = [
    ["via", "10.9.255.9", "dev", "up0", "proto", "static"],
    ["dev", "up0", "proto", "static", "src", "10.9.255.1", "mtu", "1400"],
    ["dev", "up0", "scope", "link", "proto", "bird"],
    ["via", "198.51.100.1", "dev", "up0", "onlink"],
]
FOREIGN6 = [
    ["via", "fd00:9:0:0:ffff::9", "dev", "up0", "proto", "static"],
    ["dev", "up0", "proto", "static", "mtu", "1400"],
    ["dev", "up0", "proto", "bird", "pref", "high"],
    ["via", "2001:db8::1", "dev", "up0", "onlink"],
]


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("target", "words"),
    [*((POD4, words) for words in FOREIGN4), *((POD6, words) for words in FOREIGN6)],
    ids=[f"{version}-{name}" for version in ("v4", "v6") for name in ("gateway", "mtu", "protocol", "onlink")],
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


OTHER4 = {
    "protocol": ["proto", "kernel"],
    "universe": ["proto", "static", "scope", "global"],
    "source": ["src", "10.9.255.1"],
    "metric": ["metric", "77"],
    "mtu": ["proto", "kernel", "scope", "link", "mtu", "1400"],
}
OTHER6 = {
    "protocol": ["proto", "kernel"],
    "source": ["src", "fd00:9:0:0:ffff::1"],
    "metric": ["metric", "77"],
    "mtu": ["proto", "kernel", "mtu", "1400"],
}
whoever = pytest.mark.parametrize(
    ("target", "words"),
    [*((POD4, words) for words in OTHER4.values()), *((POD6, words) for words in OTHER6.values())],
    ids=[*(f"v4-{name}" for name in OTHER4), *(f"v6-{name}" for name in OTHER6)],
)


@whoever
@pytest.mark.privileged
def test_remove_all_takes_a_route_whoever_installed_it(place: Place, target: Address, words: list[str]) -> None:
    """Protocol, scope, source, metric and MTU do not make it another's; all of them come back with it."""
    place.add(target, "dev", "lxc0", *words)
    before = place.show(target)
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), removed.append)
    assert place.show(target) == []
    for _ in range(2):
        for each in reversed(removed):
            routes.add_again(place.netlink, each)
        assert place.show(target) == before


@both
@pytest.mark.privileged
def test_remove_all_takes_several_and_leaves_others(place: Place, target: Address) -> None:
    """Routes of other metrics, another device, another table, and to a network."""
    place.add(target, "dev", "lxc0", "proto", "kernel", "metric", "5")
    place.add(target, "dev", "lxc0", "metric", "6")
    place.add(target, "dev", "up0", "metric", "7")
    place.add(target, "dev", "lxc0", "table", "100")
    before = place.show(target), place.show(target, "100")
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), removed.append)
    assert len(removed) == 2
    assert [found["dev"] for found in place.show(target)] == ["up0"]
    assert place.show(target, "100") == before[1]
    for each in reversed(removed):
        routes.add_again(place.netlink, each)
    assert (place.show(target), place.show(target, "100")) == before


@pytest.mark.privileged
@pytest.mark.parametrize("beside", [[], ["dev", "up0"]], ids=["alone", "beside another"])
def test_remove_all_takes_a_route_of_any_tos(place: Place, beside: list[str]) -> None:
    place.add(POD4, "dev", "lxc0", "tos", "0x10")
    if beside:
        place.add(POD4, *beside)
    before = place.show(POD4)
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(POD4, place.lxc), removed.append)
    assert [found["dev"] for found in place.show(POD4)] == beside[1:]
    for each in removed:
        routes.add_again(place.netlink, each)
    assert place.show(POD4) == before


MULTIPATH4 = {
    "first": ["nexthop", "dev", "lxc0", "nexthop", "dev", "up0", "weight", "3"],
    "second": ["nexthop", "dev", "up0", "nexthop", "dev", "lxc0"],
    "onlink": ["nexthop", "via", "198.51.100.1", "dev", "up0", "onlink", "nexthop", "dev", "lxc0"],
}
MULTIPATH6 = {
    "first": ["nexthop", "via", "fe80::1", "dev", "lxc0", "nexthop", "via", "fe80::2", "dev", "up0", "weight", "3"],
    "second": ["nexthop", "via", "fe80::1", "dev", "up0", "nexthop", "via", "fe80::2", "dev", "lxc0"],
    "onlink": [
        *("nexthop", "via", "2001:db8::1", "dev", "up0", "onlink"),
        *("nexthop", "via", "2001:db8::2", "dev", "lxc0", "onlink"),
    ],
}


@pytest.mark.privileged
@pytest.mark.parametrize(
    ("target", "words"),
    [*((POD4, words) for words in MULTIPATH4.values()), *((POD6, words) for words in MULTIPATH6.values())],
    ids=[*(f"v4-{name}" for name in MULTIPATH4), *(f"v6-{name}" for name in MULTIPATH6)],
)
@pytest.mark.parametrize("state", ["up", "down"])
def test_remove_all_takes_a_route_with_a_path_through_the_interface(
    place: Place, target: Address, words: list[str], state: str
) -> None:
    """A packet of some flows would take that path, past the policy program."""
    place.add(target, *words)
    if state == "down":
        # Without a carrier on the other path its flags say linkdown, which the kernel does not take back.
        ip(place.netns, "link", "set", "peer1", "down")
        until(lambda: "linkdown" in str(place.show(target)), "the path has no carrier")
    before = place.show(target)
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), removed.append)
    assert place.show(target) == []
    assert len(removed) == 1
    routes.add_again(place.netlink, removed[0])
    assert place.show(target) == before


@both
@pytest.mark.privileged
def test_remove_all_leaves_a_route_with_other_paths(place: Place, target: Address) -> None:
    one, other = (
        (["via", "10.9.255.8"], ["via", "10.9.255.9"]) if target == POD4 else (["via", "fe80::1"], ["via", "fe80::2"])
    )
    place.add(target, "nexthop", *one, "dev", "up0", "nexthop", *other, "dev", "up0")
    before = place.show(target)
    routes.remove_all(place.netlink, Route(target, place.lxc), lambda _: None)
    assert place.show(target) == before


@both
@pytest.mark.privileged
def test_remove_all_takes_a_route_of_a_nexthop_object_that_is_not_spelled_out(place: Place, target: Address) -> None:
    run(nsenter(place.netns, "sysctl", "-qw", "net.ipv4.nexthop_compat_mode=0"))
    for number, name in (("9", "lxc0"), ("10", "up0")):
        ip(place.netns, f"-{target.version}", "nexthop", "add", "id", number, "dev", name)
    place.add(target, "nhid", "10", "metric", "5")
    place.add(target, "nhid", "9", "metric", "6")
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), removed.append)
    assert [found["nhid"] for found in place.show(target)] == [10]
    routes.add_again(place.netlink, removed[0])
    assert [found["nhid"] for found in place.show(target)] == [10, 9]


@both
@pytest.mark.privileged
def test_remove_all_sees_past_what_comes_first(place: Place, target: Address) -> None:
    """A better route through another device, or a rule that asks another table first."""
    place.add(target, "dev", "up0", "metric", "1")
    place.add(target, "dev", "lxc0", "proto", "kernel", "metric", "2")
    routes.remove_all(place.netlink, Route(target, place.lxc), lambda _: None)
    assert [found["dev"] for found in place.show(target)] == ["up0"]
    ip(place.netns, f"-{target.version}", "route", "flush", "root", str(target))
    place.add(target, "dev", "lxc0", "proto", "kernel")
    ip(place.netns, f"-{target.version}", "route", "add", "default", "dev", "up0", "table", "200")
    ip(place.netns, f"-{target.version}", "rule", "add", "pref", "100", "lookup", "200")
    routes.remove_all(place.netlink, Route(target, place.lxc), lambda _: None)
    assert place.show(target) == []


@both
@pytest.mark.privileged
def test_remove_all_without_a_route_or_an_interface(place: Place, target: Address) -> None:
    noted: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), noted.append)
    place.add(target, "dev", "lxc0")
    ip(place.netns, "link", "del", "lxc0")
    place.add(target, "dev", "up0")
    routes.remove_all(place.netlink, Route(target, place.lxc), noted.append)
    assert noted == []


@both
@pytest.mark.privileged
def test_a_route_that_comes_back_is_an_error(place: Place, target: Address) -> None:
    """A routing daemon, say: reporting success would leave a way past the policy."""
    place.add(target, "dev", "lxc0", "metric", "5")
    route = Route(target, place.lxc)
    with pytest.raises(RouteStays, match=f"the route to {target}/.* is there again") as info:
        routes.remove_all(place.netlink, route, lambda _: place.add(target, "dev", "lxc0", "metric", "6"))
    assert info.value.route == route


@both
@pytest.mark.privileged
def test_a_route_through_a_nexthop_object_comes_back(place: Place, target: Address) -> None:
    ip(place.netns, f"-{target.version}", "nexthop", "add", "id", "9", "dev", "lxc0")
    ip(place.netns, f"-{target.version}", "route", "add", f"{target}/{target.max_prefixlen}", "nhid", "9")
    before = place.show(target)
    assert before[0]["nhid"] == 9
    removed: list[Installed] = []
    routes.remove_all(place.netlink, Route(target, place.lxc), removed.append)
    assert place.show(target) == []
    routes.add_again(place.netlink, removed[0])
    assert place.show(target) == before


@both
@pytest.mark.privileged
def test_interface_that_went_away(place: Place, target: Address) -> None:
    ip(place.netns, "link", "del", "lxc0")
    with pytest.raises(NetlinkError, match="install route") as info:
        routes.upsert(place.netlink, Route(target, place.lxc))
    assert info.value.errno in (errno.ENODEV, errno.EINVAL)
